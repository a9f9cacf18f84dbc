/**
 * Phase round: learned rounding on frozen transforms. An offset V for every weight, in [-0.5, 0.5],
 * moves it to the code above or below; it follows the sign of its gradient, while the clipping logits
 * go on learning. Source: SignRound (arXiv 2309.05516).
 */

import { constants } from "../../affine/sites.ts";
import { disposeAll, type LoadedWeights } from "../../models/load.ts";
import { fakeQuantLinears, sharedByLinears } from "../../quant/weights.ts";
import { invoke } from "../../tensor/invoke.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type PhaseResult, type TrainHooks, trainPhase } from "../attempts.ts";
import { blockLoss, windowInputs } from "../block-loss.ts";
import { controlled, disposeParameters, NO_MATRICES, Parameter } from "../parameters.ts";
import { type BlockProblem, quantizedLinears, weightClipName } from "../problem.ts";
import { type TrainingWeights, trainingWeights } from "../short-weights.ts";
import { isWorthRecording } from "../step-recorder.ts";
import type { StepControl } from "../train-step.ts";

/** Furthest that an offset can go: half a step, to either neighbour. */
export const OFFSET_LIMIT = 0.5;
/** Rate of the clipping logits, as a share of the affine phase's. */
const CLIP_RATE = 0.5;
/** Largest rate of the offsets. */
const MAX_OFFSET_RATE = 0.01;

const offsetName = (key: string): string => `offset.${key}`;

/** What the phase learned; the caller owns both. */
export interface Rounding {
  /** Clipping logits of weights and activations. */
  readonly clips: readonly Parameter[];
  /** V by linear. */
  readonly offsets: ReadonlyMap<string, Tensor>;
}

interface Attempt extends Rounding {
  readonly training: TrainingWeights;
  /** What fused linears have in common, from the weights whose codes will be made. */
  readonly shared: LoadedWeights;
}

/** Rounding learned for `folded` weights, from the clipping logits that `clips` have. Throws: AQ_STOPPED. */
export async function roundPhase(
  problem: BlockProblem,
  folded: LoadedWeights,
  clips: readonly Parameter[],
  hooks: TrainHooks,
): Promise<PhaseResult<Rounding>> {
  const { settings } = problem;
  const linears = quantizedLinears(problem);
  const result = await trainPhase<Attempt>(
    {
      name: "round",
      block: problem.index,
      windows: problem.inputs.windows,
      batch: settings.batch,
      device: problem.context.device,
      epochs: settings.roundEpochs,
      repeats: isWorthRecording(problem) ? "always" : "never",
      async start() {
        const training = await trainingWeights(problem, "round", folded);
        try {
          const shared = sharedByLinears(folded, linears);
          return { ...startRounding(problem, clips), training, shared };
        } catch (error) {
          training.dispose();
          throw error;
        }
      },
      dispose(attempt) {
        disposeRounding(attempt);
        endAttempt(attempt);
      },
      step(state, windows, { t, steps, rate }) {
        const clipRate = settings.lwcLr * CLIP_RATE;
        const offsetRate = Math.min(1 / steps, MAX_OFFSET_RATE);
        const parameters = new Map(state.clips.map((p) => [p.name, p.value]));
        for (const [key, v] of state.offsets) parameters.set(offsetName(key), v);
        return {
          parameters,
          inputs: () => windowInputs(problem, windows),
          record(tape, vars, inputs) {
            const weights = constants(tape, state.training.weights);
            fakeQuantLinears(tape, weights, { ...linears, shared: state.shared }, (key) => ({
              clip: vars.get(weightClipName(key)),
              offset: vars.get(offsetName(key)),
            }));
            return blockLoss(problem, tape, weights, vars, inputs);
          },
          apply(gradients, control) {
            const updates = state.clips.map((parameter) => ({
              parameter,
              gradient: gradients.get(parameter.name),
              rate: clipRate,
            }));
            const offsets = [...state.offsets].map(
              ([key, v]) => [v, gradients.get(offsetName(key))] as const,
            );
            stepOffsets(offsets, control, offsetRate);
            const { weightDecay } = settings;
            return Parameter.update(updates, { control, weightDecay, matrices: NO_MATRICES });
          },
          rate: rate * (1 - t / steps),
          step: t + 1,
          watch: hooks.watch,
        };
      },
    },
    hooks,
  );
  if (result.state) endAttempt(result.state);
  return result;
}

/** Frees what an attempt has besides what it learned. */
function endAttempt({ training, shared }: Attempt): void {
  training.dispose();
  disposeAll(shared);
}

/** Moves offsets against the signs of their gradients, as far as they have any, in one call. */
export function stepOffsets(
  offsets: readonly (readonly [v: Tensor, gradient: Tensor | undefined])[],
  control: StepControl,
  rate: number,
): void {
  const given = offsets.flatMap(([v, gradient]) => (gradient ? [v, gradient] : []));
  if (given.length === 0) return;
  const { leading, lr } = controlled(control, rate);
  invoke("sign_step", [...leading, ...given], { lr, limit: OFFSET_LIMIT });
}

function startRounding(problem: BlockProblem, starts: readonly Parameter[]): Rounding {
  const { device } = problem.context;
  const offsets = new Map<string, Tensor>();
  const clips: Parameter[] = [];
  try {
    const { model, kept } = problem;
    for (const { key, out, in: columns } of model.linears.filter(({ key }) => !kept.has(key))) {
      const v = Tensor.empty([out, columns], "f32", device);
      offsets.set(key, v);
      invoke("fill", [v], { value: 0 });
    }
    for (const { name, group, value } of starts) clips.push(Parameter.from(name, group, value));
    return { clips, offsets };
  } catch (error) {
    disposeRounding({ clips, offsets });
    throw error;
  }
}

export function disposeRounding({ clips, offsets }: Rounding): void {
  disposeParameters(clips);
  for (const v of offsets.values()) v.dispose();
}
