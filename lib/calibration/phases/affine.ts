/** Phase affine: transforms and clipping learned together, under the widening mask. */

import { type MaskOf, maskOfEpoch } from "../../affine/gradual-mask.ts";
import type { StartValue } from "../../affine/site.ts";
import { startSites } from "../../affine/sites.ts";
import { LastInverses } from "../../autograd/ops/lu-inverse.ts";
import { keptActivations } from "../../models/kept.ts";
import { CLIP_START, clipsTokens } from "../../quant/scheme.ts";
import { fakeQuantLinears, startClip } from "../../quant/weights.ts";
import { type PhaseResult, type TrainHooks, trainPhase } from "../attempts.ts";
import { blockLoss, windowInputs } from "../block-loss.ts";
import { cosine, disposeParameters, Parameter, type ParameterGroup } from "../parameters.ts";
import {
  type BlockProblem,
  foldedWeights,
  quantizedLinears,
  tokenClipName,
  weightClipName,
} from "../problem.ts";
import { learns, recipeSites } from "../recipe.ts";
import { type TrainingWeights, trainingWeights } from "../short-weights.ts";
import { isWorthRecording } from "../step-recorder.ts";

/** What the phase learned. The caller owns the parameters; there are none where it did not run. */
export interface AffineResult extends Omit<PhaseResult<unknown>, "state"> {
  readonly parameters: readonly Parameter[];
  /** The masks of the last epoch: folding uses them. */
  readonly maskOf: MaskOf;
  /** True: every attempt failed, and the block is to be rounded to nearest. */
  readonly failed: boolean;
}

/** What an attempt has. It begins without inverses, so that it repeats to the last bit. */
interface Attempt {
  readonly parameters: readonly Parameter[];
  readonly inverses: LastInverses;
  readonly training: TrainingWeights;
}

/** Parameters of a block at their starting values. */
export function startParameters(problem: BlockProblem): Parameter[] {
  const parameters: Parameter[] = [];
  try {
    for (const [name, group, start] of starts(problem)) {
      parameters.push(new Parameter(name, group, start, problem.context.device));
    }
    return parameters;
  } catch (error) {
    disposeParameters(parameters);
    throw error;
  }
}

function* starts(
  problem: BlockProblem,
): Generator<readonly [name: string, group: ParameterGroup, start: StartValue]> {
  const { model, recipe, scheme, settings, weights, statistics, kept } = problem;
  if (recipe.sites) {
    const context = {
      shape: model.shape,
      weights,
      statistics,
      alpha: settings.alpha,
      scheme,
      rotated: problem.rotated,
      style: recipe.transforms,
    };
    for (const [name, start] of startSites(recipeSites(model, recipe), context)) {
      yield [name, "transform", start];
    }
  }
  if (recipe.weightClip) {
    for (const { key, out, in: columns } of model.linears.filter(({ key }) => !kept.has(key))) {
      const start = { ...startClip(out, columns, scheme), masked: false };
      yield [weightClipName(key), "clip", start];
    }
  }
  if (recipe.tokenClip && clipsTokens(scheme)) {
    const plain = keptActivations(model, kept);
    for (const name of model.activations.filter((name) => !plain.has(name))) {
      const start = { data: Float32Array.of(CLIP_START), shape: [1], masked: false };
      yield [tokenClipName(name), "clip", start];
    }
  }
}

/** Trains transforms and clipping of a block. Throws: AQ_STOPPED. */
export async function affinePhase(problem: BlockProblem, hooks: TrainHooks): Promise<AffineResult> {
  const { settings, recipe } = problem;
  const linears = quantizedLinears(problem);
  const { affineEpochs: epochs, sf } = settings;
  const { floor, dominance, rates: fall, mask: maskRule } = recipe.transforms;
  const idle: MaskOf = () => ({ band: 0, sf });
  if (!learns(recipe) || epochs === 0) {
    const none = { losses: [], margin: null, skippedSteps: 0, fallback: null };
    // Without transforms clipping learns in the phase that follows, if there is one.
    const goesOn = !recipe.sites && settings.roundEpochs > 0;
    const parameters = goesOn ? startParameters(problem) : [];
    return { ...none, parameters, maskOf: idle, failed: false };
  }
  const masksOf =
    (epoch: number): MaskOf =>
    (size) =>
      maskOfEpoch(epoch, epochs, size, sf, maskRule);
  const { state, ...result } = await trainPhase<Attempt>(
    {
      name: "affine",
      block: problem.index,
      windows: problem.inputs.windows,
      batch: settings.batch,
      device: problem.context.device,
      epochs,
      repeats: isWorthRecording(problem) ? "within an epoch" : "never",
      async start() {
        const training = await trainingWeights(problem, "affine", problem.weights);
        try {
          const parameters = startParameters(problem);
          for (const p of parameters) p.keepAway(floor);
          return { parameters, inverses: new LastInverses(), training };
        } catch (error) {
          training.dispose();
          throw error;
        }
      },
      dispose(attempt) {
        disposeParameters(attempt.parameters);
        endAttempt(attempt);
      },
      step({ parameters, inverses, training }, windows, { epoch, t, steps, rate }) {
        const maskOf = masksOf(epoch);
        const matrices = { maskOf, dominance, floor };
        const { weightDecay, lwcLr, letLr } = settings;
        const shown = parameters.map((p) => [p.name, p.shown(maskOf)] as const);
        return {
          parameters: new Map(shown.map(([name, { tensor }]) => [name, tensor])),
          rounded: new Map(
            shown.flatMap(([name, { rounded }]) => (rounded ? [[name, rounded]] : [])),
          ),
          inputs: () => windowInputs(problem, windows),
          record(tape, vars, inputs) {
            const weights = foldedWeights(
              problem,
              tape,
              training.weights,
              vars,
              undefined,
              inverses,
            );
            fakeQuantLinears(tape, weights, linears, (key) => ({
              clip: vars.get(weightClipName(key)),
            }));
            return blockLoss(problem, tape, weights, vars, inputs);
          },
          apply(gradients, control) {
            const updates = parameters.map((parameter) => ({
              parameter,
              gradient: gradients.get(parameter.name),
              rate: parameter.group === "clip" ? lwcLr : letLr,
            }));
            return Parameter.update(updates, { control, weightDecay, matrices });
          },
          rate: rate * (fall === "cosine" ? cosine(t, steps) : 1),
          step: t + 1,
          watch: hooks.watch,
        };
      },
    },
    hooks,
  );
  if (state) {
    for (const parameter of state.parameters) parameter.endSteps();
    endAttempt(state);
  }
  return {
    ...result,
    parameters: state?.parameters ?? [],
    maskOf: state ? masksOf(epochs - 1) : idle,
    failed: state === undefined,
  };
}

/** Frees what an attempt has besides its parameters. */
function endAttempt({ inverses, training }: Attempt): void {
  inverses.dispose();
  training.dispose();
}
