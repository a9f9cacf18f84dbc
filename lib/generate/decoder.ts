/** A model whose weights stay in memory, one step at a time over the tokens of several sequences. */

import { Eager } from "../autograd/graph.ts";
import { headWeights } from "../eval/perplexity.ts";
import { inProductType } from "../eval/resident-block.ts";
import type { Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights, loadOuter } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { BlockStack, type DecoderOptions } from "./block-stack.ts";
import type { LanguageModel } from "./open.ts";
import { type StepInputs, StepRecorder } from "./step-recorder.ts";

/** One token of a step. */
export interface StepToken {
  readonly slot: number;
  readonly position: number;
  readonly id: number;
}

export class Decoder {
  readonly model: Model;
  readonly capacity: number;
  readonly slots: number;
  readonly #device: string;
  readonly #outer: LoadedWeights;
  readonly #stack: BlockStack;
  readonly #recorder: StepRecorder;

  /** Reads all weights. Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL, AQ_NUMERIC, AQ_OOM. */
  constructor(source: LanguageModel, options: DecoderOptions) {
    const { checkpoint, model, device } = source;
    this.model = model;
    this.slots = options.slots;
    this.capacity = options.capacity;
    this.#device = device;
    this.#outer = withHead(loadOuter(checkpoint, model, device));
    try {
      this.#stack = new BlockStack(source, options);
    } catch (error) {
      disposeAll(this.#outer);
      throw error;
    }
    this.#recorder = new StepRecorder(device, (inputs) => this.#logitsOf(this.#run(inputs, true)));
  }

  /** Bytes of the caches. */
  get cacheBytes(): number {
    return this.#stack.cacheBytes;
  }

  /**
   * Runs tokens through the model. Those of one slot may be a piece of a prompt, in the order of their
   * positions. Enqueues it and returns the logits [wanted, V] of the tokens at `wanted`, in that order, if
   * any are: the caller disposes them before the next step.
   *
   * Throws: AQ_ARG where a slot or a position is outside of the caches, or an id of the vocabulary.
   */
  step(tokens: readonly StepToken[], wanted: readonly number[]): Tensor | undefined {
    const inputs = inputsOf(tokens);
    const all = wanted.length === tokens.length && wanted.every((m, i) => m === i);
    const apart = new Set(tokens.map(({ slot }) => slot)).size === tokens.length;
    const recorded = all && apart ? this.#recorder.run(inputs) : undefined;
    return recorded ?? this.#enqueue(inputs, apart, all ? "all" : wanted);
  }

  /** Op by op: the logits of the tokens at `wanted`, if any are. */
  #enqueue(
    inputs: Int32Array,
    apart: boolean,
    wanted: "all" | readonly number[],
  ): Tensor | undefined {
    const shape = [3, inputs.length / 3];
    return scope(() => {
      const state = this.#run(Tensor.from(inputs, shape, "i32", this.#device), apart);
      if (wanted === "all") return this.#logitsOf(state);
      if (wanted.length === 0) return undefined;
      const ids = Tensor.from(Int32Array.from(wanted), undefined, "i32", this.#device);
      const rows = invokeOne("gather_rows", [state, ids], { dtype: dtypeCode("f32") });
      state.dispose();
      return this.#logitsOf(rows);
    });
  }

  /** States [M, C] behind the last block. Within a scope. */
  #run(inputs: StepInputs, apart: boolean): Tensor {
    const count = inputs.size / 3;
    const [slots, positions, ids] = [0, 1, 2].map((row) => inputs.view(row * count, [count])) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const embedded = this.model.embed(this.#outer, ids.reshape([1, count]), positions);
    const state = this.#stack.run(embedded, { slots, positions, apart });
    const rows = state.reshape([count, this.model.shape.hidden]);
    state.dispose();
    return rows;
  }

  #logitsOf(rows: Tensor): Tensor {
    const graph = new Eager();
    const outer = headWeights(graph, this.#outer);
    return this.model.head(graph, outer, graph.constant(rows)).value.tensor;
  }

  /** Frees weights and caches. */
  dispose(): void {
    this.#recorder.dispose();
    this.#stack.dispose();
    disposeAll(this.#outer);
  }
}

/** Slots, positions and ids, one after the other. */
function inputsOf(tokens: readonly StepToken[]): Int32Array {
  const inputs = new Int32Array(3 * tokens.length);
  for (const [m, { slot, position, id }] of tokens.entries()) {
    inputs[m] = slot;
    inputs[tokens.length + m] = position;
    inputs[2 * tokens.length + m] = id;
  }
  return inputs;
}

/** A head of its own, in the type of the device's products, where those are not of f32. */
function withHead(outer: LoadedWeights): LoadedWeights {
  const head = outer["head"] ?? outer["embedding"];
  if (head?.dtype !== "f32" || precisionOf(head.device) === "f32") return outer;
  if (outer["head"]) return inProductType(outer, new Set(["head"]));
  const copy = invokeOne("cast", [head], { dtype: dtypeCode(precisionOf(head.device)) });
  return { ...outer, head: copy };
}
