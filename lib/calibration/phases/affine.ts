/** Phase affine: transforms and clipping learned together, under the widening mask. */

import { type MaskOf, maskOfEpoch } from "../../affine/gradual-mask.ts";
import { startSites } from "../../affine/sites.ts";
import type { Var } from "../../autograd/graph.ts";
import { LastInverses } from "../../autograd/ops/lu-inverse.ts";
import { CLIP_START, quantizesTokens } from "../../quant/scheme.ts";
import { fakeQuantWeight, startClip } from "../../quant/weights.ts";
import { type PhaseResult, type TrainHooks, trainPhase } from "../attempts.ts";
import { blockLoss } from "../block-loss.ts";
import { cosine, disposeParameters, Parameter, smallestMargin } from "../parameters.ts";
import { type BlockProblem, foldedWeights, tokenClipName, weightClipName } from "../problem.ts";
import { learns, recipeSites } from "../recipe.ts";
import { trainStep } from "../train-step.ts";

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
}

/** Parameters of a block at their starting values. */
export function startParameters(problem: BlockProblem): Parameter[] {
  const { model, recipe, scheme, settings, weights, statistics } = problem;
  const { device } = problem.context;
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
      style: recipe.transforms,
    };
    for (const [name, start] of startSites(recipeSites(model, recipe), context)) {
      parameters.push(new Parameter(name, "transform", start, device));
    }
  }
  if (recipe.weightClip) {
    for (const { key, out, in: columns } of model.linears) {
      const start = { ...startClip(out, columns, scheme.groupSize), masked: false };
      parameters.push(new Parameter(weightClipName(key), "clip", start, device));
    }
  }
  if (recipe.tokenClip && quantizesTokens(scheme)) {
    for (const name of model.activations) {
      const start = { data: Float32Array.of(CLIP_START), shape: [1], masked: false };
      parameters.push(new Parameter(tokenClipName(name), "clip", start, device));
    }
  }
  return parameters;
}

/** Trains transforms and clipping of a block. Throws: AQ_STOPPED. */
export async function affinePhase(problem: BlockProblem, hooks: TrainHooks): Promise<AffineResult> {
  const { settings, model, scheme, recipe } = problem;
  const { affineEpochs: epochs, sf } = settings;
  const { floor, dominance, rates: fall, mask: maskRule } = recipe.transforms;
  const idle: MaskOf = () => ({ band: 0, sf });
  if (!learns(recipe) || epochs === 0) {
    const none = { losses: [], margin: null, skippedSteps: 0, fallback: null };
    return { ...none, parameters: [], maskOf: idle, failed: false };
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
      epochs,
      start() {
        const parameters = startParameters(problem);
        for (const p of parameters) p.keepAway(floor);
        return { parameters, inverses: new LastInverses() };
      },
      dispose({ parameters, inverses }) {
        disposeParameters(parameters);
        inverses.dispose();
      },
      margin: ({ parameters }) => smallestMargin(parameters),
      step({ parameters, inverses }, n, { epoch, t, steps, rate }) {
        const maskOf = masksOf(epoch);
        const share = rate * (fall === "cosine" ? cosine(t, steps) : 1);
        const rateOf = ({ group }: Parameter): number =>
          (group === "clip" ? settings.lwcLr : settings.letLr) * share;
        const rule = { maskOf, dominance, floor };
        return trainStep({
          parameters: new Map(parameters.map((p) => [p.name, p.value])),
          record(tape, vars) {
            const weights = foldedWeights(problem, tape, problem.weights, vars, maskOf, inverses);
            for (const { key } of model.linears) {
              const clip = vars.get(weightClipName(key));
              weights[key] = fakeQuantWeight(tape, weights[key] as Var, clip, scheme);
            }
            return blockLoss(problem, tape, weights, vars, n);
          },
          apply(gradients) {
            for (const p of parameters) {
              const g = gradients.get(p.name);
              if (g) p.update(g, t + 1, rateOf(p), settings.weightDecay, rule);
            }
          },
          step: t + 1,
          watch: hooks.watch,
        });
      },
    },
    hooks,
  );
  state?.inverses.dispose();
  return {
    ...result,
    parameters: state?.parameters ?? [],
    maskOf: state ? masksOf(epochs - 1) : idle,
    failed: state === undefined,
  };
}
