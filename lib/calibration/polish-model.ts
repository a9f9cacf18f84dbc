/** All blocks at once, as polish trains them. */

import type { Var } from "../autograd/graph.ts";
import type { Tape } from "../autograd/tape.ts";
import { embedWindow, headWeights } from "../eval/perplexity.ts";
import { disposeLearned, type LearnedBlock } from "../export/learned-block.ts";
import type { TokenNumbers } from "../export/weights.ts";
import type { BlockContext, Model } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import { fakeQuantLinears } from "../quant/weights.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type FinishedBlock, quantizeBlock } from "./finish-block.ts";
import { type KeepRules, keptKeys } from "./keep.ts";
import { disposeParameters, NO_MATRICES, Parameter } from "./parameters.ts";
import { disposeTokens, type TokenTensors, tokenConstants, tokenTensors } from "./passes.ts";
import { stepOffsets } from "./phases/round.ts";
import {
  activationHook,
  type BlockScheme,
  quantizedLinears,
  tokenClipName,
  weightClipName,
} from "./problem.ts";
import type { StepControl } from "./train-step.ts";

/** Full rates. */
export interface PolishRates {
  /** Of gains and biases. */
  readonly gain: number;
  readonly clip: number;
  /** Of the rounding offsets, by the sign of their gradients. */
  readonly offset: number;
}

/** One block. Weights of the linears are fixed; the rest learns. */
interface PolishBlock {
  readonly linears: LoadedWeights;
  /** Gains and biases by key, and clipping logits. */
  readonly parameters: readonly Parameter[];
  readonly offsets: LoadedWeights;
  /** Global scales of its activations; they stay as calibration found them. */
  readonly numbers: TokenNumbers;
  readonly tokens: TokenTensors;
}

const offsetName = (key: string): string => `offset.${key}`;

/** The state of all blocks; dispose it after use. */
export class PolishModel {
  readonly #model: Model;
  readonly #context: BlockContext;
  readonly #settings: KeepRules;
  readonly #blocks: PolishBlock[] = [];

  constructor(model: Model, context: BlockContext, settings: KeepRules) {
    this.#model = model;
    this.#context = context;
    this.#settings = settings;
  }

  /** Takes the next block over. */
  add(
    { weights, clips, offsets }: LearnedBlock,
    inputGlobals: TokenNumbers["inputGlobals"] = {},
  ): void {
    const keys = new Set(this.#model.linears.map(({ key }) => key));
    const isLinear = ([key]: [string, Tensor]): boolean => keys.has(key);
    const others = Object.entries(weights).filter((entry) => !isLinear(entry));
    const parameters = [
      ...others.map(([key, value]) => Parameter.from(key, "gain", value)),
      ...Object.entries(clips).map(([name, value]) => Parameter.from(name, "clip", value)),
    ];
    const linears = Object.fromEntries(Object.entries(weights).filter(isLinear));
    disposeLearned({ weights: Object.fromEntries(others), clips, offsets: {} });
    const numbers = { tokenClips: {}, inputGlobals };
    const tokens = tokenTensors(numbers, this.#context.device);
    this.#blocks.push({ linears, parameters, offsets, numbers, tokens });
  }

  /** Everything that learns, by block and name. */
  tensors(): Map<string, Tensor> {
    const all = new Map<string, Tensor>();
    for (const [i, { parameters, offsets }] of this.#blocks.entries()) {
      for (const { name, value } of parameters) all.set(`${i}.${name}`, value);
      for (const [key, v] of Object.entries(offsets)) all.set(`${i}.${offsetName(key)}`, v);
    }
    return all;
  }

  /** Logits [1, T, V] of a window, everything quantized as in training; `vars` are the tensors' own. */
  logits(tape: Tape, outer: LoadedWeights, vars: ReadonlyMap<string, Var>, ids: Int32Array): Var {
    const model = this.#model;
    let x: Var = tape.constant(embedWindow(model, outer, ids));
    for (const [i, { linears, parameters, tokens }] of this.#blocks.entries()) {
      const own = (name: string): Var | undefined => vars.get(`${i}.${name}`);
      const weights: Record<string, Var> = {};
      for (const { name, group } of parameters) {
        if (group === "gain") weights[name] = own(name) as Var;
      }
      for (const [key, tensor] of Object.entries(linears)) weights[key] = tape.constant(tensor);
      const problem = this.#problem(i);
      fakeQuantLinears(tape, weights, quantizedLinears(problem), (key) => ({
        clip: own(weightClipName(key)),
        offset: own(offsetName(key)),
      }));
      const clips = new Map<string, Var>();
      for (const activation of model.activations) {
        const clip = own(tokenClipName(activation));
        if (clip) clips.set(activation, clip);
      }
      x = model.block(
        tape,
        this.#context,
        weights,
        x,
        activationHook(problem, { ...tokenConstants(tape, tokens), clips }),
      );
    }
    return model.head(tape, headWeights(tape, outer), x);
  }

  /** One step. */
  update(gradients: ReadonlyMap<string, Tensor>, control: StepControl, rates: PolishRates): void {
    const updates = this.#blocks.flatMap(({ parameters }, i) =>
      parameters.map((parameter) => ({
        parameter,
        gradient: gradients.get(`${i}.${parameter.name}`),
        rate: parameter.group === "clip" ? rates.clip : rates.gain,
      })),
    );
    Parameter.update(updates, { control, weightDecay: 0, matrices: NO_MATRICES });
    const offsets = this.#blocks.flatMap((block, i) =>
      Object.entries(block.offsets).map(
        ([key, v]) => [v, gradients.get(`${i}.${offsetName(key)}`)] as const,
      ),
    );
    stepOffsets(offsets, control, rates.offset);
  }

  /** Block i as it would be stored now; the caller owns it. Throws: AQ_NUMERIC. */
  finish(i: number): FinishedBlock {
    const { linears, parameters, offsets, numbers } = this.#blocks[i] as PolishBlock;
    const gains = parameters.filter(({ group }) => group === "gain");
    const weights = {
      ...linears,
      ...Object.fromEntries(gains.map(({ name, value }) => [name, value])),
    };
    const clips = parameters.filter(({ group }) => group === "clip");
    const made = quantizeBlock(this.#problem(i), weights, clips, new Map(Object.entries(offsets)));
    return { ...made, inputGlobals: numbers.inputGlobals };
  }

  #problem(i: number): BlockScheme {
    const { scheme } = this.#settings;
    return { model: this.#model, scheme, kept: keptKeys(this.#model, i, this.#settings) };
  }

  dispose(): void {
    for (const { linears, parameters, offsets, tokens } of this.#blocks) {
      disposeParameters(parameters);
      disposeTokens(tokens);
      for (const tensor of [...Object.values(linears), ...Object.values(offsets)]) tensor.dispose();
    }
  }
}
