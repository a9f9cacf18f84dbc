/**
 * Phase round: learned rounding on frozen transforms. An offset V for every weight, in [-0.5, 0.5],
 * moves it to the code above or below; it follows the sign of its gradient, while the clipping logits
 * go on learning. Source: SignRound (arXiv 2309.05516).
 */

import { constants } from "../../affine/sites.ts";
import type { Var } from "../../autograd/graph.ts";
import type { LoadedWeights } from "../../models/load.ts";
import { fakeQuantWeight } from "../../quant/weights.ts";
import { invoke } from "../../tensor/invoke.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type PhaseResult, type TrainHooks, trainPhase } from "../attempts.ts";
import { blockLoss } from "../block-loss.ts";
import { disposeParameters, NO_MATRICES, Parameter } from "../parameters.ts";
import { type BlockProblem, weightClipName } from "../problem.ts";
import { trainStep } from "../train-step.ts";

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

/** Rounding learned for `folded` weights, from the clipping logits that `clips` have. Throws: AQ_STOPPED. */
export function roundPhase(
  problem: BlockProblem,
  folded: LoadedWeights,
  clips: readonly Parameter[],
  hooks: TrainHooks,
): Promise<PhaseResult<Rounding>> {
  const { settings, model, scheme } = problem;
  return trainPhase<Rounding>(
    {
      name: "round",
      block: problem.index,
      windows: problem.inputs.windows,
      epochs: settings.roundEpochs,
      start: () => startRounding(problem, clips),
      dispose: disposeRounding,
      step(state, n, { t, steps, rate }) {
        const fall = rate * (1 - t / steps);
        const clipRate = settings.lwcLr * CLIP_RATE * fall;
        const offsetRate = Math.min(1 / steps, MAX_OFFSET_RATE) * fall;
        const parameters = new Map(state.clips.map((p) => [p.name, p.value]));
        for (const [key, v] of state.offsets) parameters.set(offsetName(key), v);
        return trainStep({
          parameters,
          record(tape, vars) {
            const weights = constants(tape, folded);
            for (const { key } of model.linears) {
              const clip = vars.get(weightClipName(key));
              const offset = vars.get(offsetName(key));
              weights[key] = fakeQuantWeight(tape, weights[key] as Var, clip, scheme, offset);
            }
            return blockLoss(problem, tape, weights, vars, n);
          },
          apply(gradients) {
            for (const p of state.clips) {
              const g = gradients.get(p.name);
              if (g) p.update(g, t + 1, clipRate, settings.weightDecay, NO_MATRICES);
            }
            for (const [key, v] of state.offsets) {
              const g = gradients.get(offsetName(key));
              if (g) invoke("sign_step", [v, g], { lr: offsetRate, limit: OFFSET_LIMIT });
            }
          },
          step: t + 1,
          watch: hooks.watch,
        });
      },
    },
    hooks,
  );
}

function startRounding(problem: BlockProblem, clips: readonly Parameter[]): Rounding {
  const { device } = problem.context;
  const offsets = new Map<string, Tensor>();
  for (const { key, out, in: columns } of problem.model.linears) {
    const v = Tensor.empty([out, columns], "f32", device);
    invoke("fill", [v], { value: 0 });
    offsets.set(key, v);
  }
  return {
    clips: clips.map(({ name, group, value }) => Parameter.from(name, group, value)),
    offsets,
  };
}

export function disposeRounding({ clips, offsets }: Rounding): void {
  disposeParameters(clips);
  for (const v of offsets.values()) v.dispose();
}
