/** Phase affine: transforms and clipping learned together, under the widening mask. */

import { maskOfEpoch } from "../../affine/gradual-mask.ts";
import { startSites } from "../../affine/sites.ts";
import type { Var } from "../../autograd/graph.ts";
import type { Mask } from "../../autograd/ops/gradual-mask.ts";
import { CLIP_START, quantizesTokens } from "../../quant/scheme.ts";
import { fakeQuantWeight, startClip } from "../../quant/weights.ts";
import { type PhaseResult, type TrainHooks, trainPhase } from "../attempts.ts";
import { blockLoss } from "../block-loss.ts";
import { cosine, disposeParameters, Parameter } from "../parameters.ts";
import { type BlockProblem, foldedWeights, tokenClipName, weightClipName } from "../problem.ts";
import { learns } from "../recipe.ts";
import { trainStep } from "../train-step.ts";

/** What the phase learned. The caller owns the parameters; there are none where it did not run. */
export interface AffineResult extends Omit<PhaseResult<unknown>, "state"> {
  readonly parameters: readonly Parameter[];
  /** The mask of the last epoch: folding uses it. */
  readonly mask: Mask;
  /** True: every attempt failed, and the block is to be rounded to nearest. */
  readonly failed: boolean;
}

/** Parameters of a block at their starting values. */
export function startParameters(problem: BlockProblem): Parameter[] {
  const { model, recipe, scheme, settings, weights, statistics } = problem;
  const parameters: Parameter[] = [];
  if (recipe.sites) {
    const { alpha } = settings;
    const context = {
      shape: model.shape,
      weights,
      statistics,
      alpha,
      scheme,
      rotated: problem.rotated,
    };
    for (const [name, start] of startSites(model.sites, context)) {
      parameters.push(new Parameter(name, "transform", start));
    }
  }
  if (recipe.weightClip) {
    for (const { key, out, in: columns } of model.linears) {
      const start = { ...startClip(out, columns, scheme.groupSize), masked: false };
      parameters.push(new Parameter(weightClipName(key), "clip", start));
    }
  }
  if (recipe.tokenClip && quantizesTokens(scheme)) {
    for (const name of model.activations) {
      const start = { data: Float32Array.of(CLIP_START), shape: [1], masked: false };
      parameters.push(new Parameter(tokenClipName(name), "clip", start));
    }
  }
  return parameters;
}

/** Trains transforms and clipping of a block. Throws: AQ_STOPPED. */
export async function affinePhase(problem: BlockProblem, hooks: TrainHooks): Promise<AffineResult> {
  const { settings, model, scheme, recipe } = problem;
  const { affineEpochs: epochs, sf } = settings;
  const idle = { band: 0, sf };
  if (!learns(recipe) || epochs === 0) {
    const none = { losses: [], margin: null, skippedSteps: 0, fallback: null };
    return { ...none, parameters: [], mask: idle, failed: false };
  }
  const maskOf = (epoch: number): Mask => maskOfEpoch(epoch, epochs, model.shape.headDim, sf);
  const { state, ...result } = await trainPhase<readonly Parameter[]>(
    {
      name: "affine",
      block: problem.index,
      windows: problem.inputs.windows,
      epochs,
      start: () => startParameters(problem),
      dispose: disposeParameters,
      step(parameters, n, { epoch, t, steps, rate }) {
        const mask = maskOf(epoch);
        const fall = rate * cosine(t, steps);
        const rateOf = ({ group }: Parameter): number =>
          (group === "clip" ? settings.lwcLr : settings.letLr) * fall;
        return trainStep({
          parameters: new Map(parameters.map((p) => [p.name, p.value])),
          record(tape, vars) {
            const weights = foldedWeights(problem, tape, problem.weights, vars, mask);
            for (const { key } of model.linears) {
              const clip = vars.get(weightClipName(key));
              weights[key] = fakeQuantWeight(tape, weights[key] as Var, clip, scheme);
            }
            return blockLoss(problem, tape, weights, vars, n);
          },
          apply(gradients) {
            let margin: number | undefined;
            for (const p of parameters) {
              const g = gradients.get(p.name);
              if (!g) continue;
              const own = p.update(g, t + 1, rateOf(p), settings.weightDecay, mask);
              if (own !== undefined) margin = Math.min(margin ?? own, own);
            }
            return margin;
          },
          step: t + 1,
          watch: hooks.watch,
        });
      },
    },
    hooks,
  );
  return {
    ...result,
    parameters: state ?? [],
    mask: state ? maskOf(epochs - 1) : idle,
    failed: state === undefined,
  };
}
