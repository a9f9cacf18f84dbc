/** The seconds of a run, from how often each part of it is done and how long it takes here. */

import { keptByBlock } from "../calibration/keep.ts";
import { heldBackWindows } from "../calibration/polish-memory.ts";
import type { LinearSpec, Model } from "../models/family.ts";
import {
  type LinearSpeed,
  measureAttention,
  measureCall,
  measureElementwise,
  measureLinear,
} from "./measure.ts";
import type { UnitSeconds, Workload } from "./work.ts";
import { writingSeconds } from "./writing.ts";

/** Ops of a training step that are too small for their size to matter. */
const SMALL_CALLS = 90;
/** Passes over the hidden width, forward and backward, besides the products: norms, sums, RoPE, quantizers. */
const HIDDEN_PASSES = 8;
/** Bytes a second of reading and writing weights; measuring it would mean writing a large file. */
const DISK_SPEED = 300e6;
/** A fold in float64 against a training step's work on the weights, and its passes of one window. */
const FOLD_FACTOR = 8;
const FOLD_PASSES = 3;

/** Windows of a step, of which there are no more than there are. */
export function batchOf({ settings, windows }: Pick<Workload, "settings" | "windows">): number {
  return Math.min(settings.train.batch, windows);
}

/** Optimizer steps of a block in an epoch. */
export function stepsPerEpoch(work: Pick<Workload, "settings" | "windows">): number {
  return Math.ceil(work.windows / batchOf(work));
}

/** Measures for about a second. */
export function measureUnits(work: Workload): UnitSeconds {
  const { device, model, settings, tokens } = work;
  const { scheme } = settings;
  const { hidden, mlp, vocabulary } = model.shape;
  const speeds = new Map<string, LinearSpeed>();
  const speedOf = (spec: LinearSpec, isQuantized: boolean): LinearSpeed => {
    const key = `${spec.out} ${spec.in} ${isQuantized}`;
    const speed =
      speeds.get(key) ?? measureLinear(spec.out, spec.in, isQuantized ? scheme : null, device);
    speeds.set(key, speed);
    return speed;
  };
  const kept = keptByBlock(model, settings);
  const linears = model.linears.map((spec) => {
    const share = kept.filter((keys) => keys.has(spec.key)).length / kept.length;
    const speed =
      share === 0 || share === 1
        ? speedOf(spec, share === 0)
        : between(speedOf(spec, true), speedOf(spec, false), share);
    return { ...speed, weights: spec.out * spec.in };
  });
  const sum = (of: (speed: (typeof linears)[number]) => number): number =>
    linears.reduce((total, speed) => total + of(speed), 0);
  const heads = measureAttention(model.shape, tokens, scheme, device);
  const elementwise = measureElementwise(mlp, device) * tokens * (mlp + HIDDEN_PASSES * hidden);
  const weightSide = sum(({ perStep }) => perStep);
  const perWeight = sum((s) => s.forwardPerToken) / sum((s) => s.weights);
  const pass = tokens * sum((s) => s.forwardPerToken) + heads.forward + elementwise / 3;
  const full = settings.recipe.transforms.norms === "full" && settings.recipe.sites;
  const call = measureCall(device);
  const stepOn = (count: number): number =>
    (full ? perWeight * normFullProducts(model, count * tokens) : 0) +
    count * (tokens * sum(({ perToken }) => perToken) + heads.training + elementwise) +
    weightSide +
    SMALL_CALLS * call;
  return {
    step: stepOn(batchOf(work)),
    windowStep: stepOn(1),
    pass,
    head: tokens * hidden * vocabulary * perWeight,
    fold: FOLD_FACTOR * weightSide + FOLD_PASSES * pass,
    rotate: 2 * hidden * sum((s) => s.weights) * perWeight,
    call,
  };
}

/** What a linear costs in the mean, that is not quantized in a share of the blocks. */
function between(quantized: LinearSpeed, kept: LinearSpeed, share: number): LinearSpeed {
  const mean = (of: (speed: LinearSpeed) => number): number =>
    (1 - share) * of(quantized) + share * of(kept);
  return {
    perToken: mean((speed) => speed.perToken),
    perStep: mean((speed) => speed.perStep),
    forwardPerToken: mean((speed) => speed.forwardPerToken),
  };
}

/**
 * Multiply-adds that C x C matrices behind the norms add to a step: their inverses with gradient, their
 * products with the weights behind them and with the tokens, forward and backward.
 */
function normFullProducts({ linears, sites, shape }: Model, tokens: number): number {
  const square = shape.hidden ** 2;
  const out = new Map(linears.map((spec) => [spec.key, spec.out]));
  return sites.reduce((sum, site) => {
    if (site.kind !== "norm") return sum;
    const behind = site.consumers.reduce((rows, key) => rows + (out.get(key) ?? 0), 0);
    return sum + square * (3 * shape.hidden + 2 * behind + 3 * tokens);
  }, 0);
}

/** Seconds by phase, in the names of the report. */
export function phaseSeconds(work: Workload, unit: UnitSeconds): Record<string, number> {
  const { model, settings, windows, evaluationWindows, bytes } = work;
  const { blocks } = model.shape;
  const { train, recipe } = settings;
  const isRounded = recipe.name === "rtn" || train.affineEpochs + train.roundEpochs === 0;
  const passes = windows * blocks * unit.pass;
  const steps = stepsPerEpoch(work) * blocks * unit.step;
  const all: Record<string, number> = {
    text: work.textSeconds + writingSeconds(work, unit),
    load: (settings.rotate ? blocks * unit.rotate : 0) + bytes / DISK_SPEED,
    statistics: passes * (train.augLoss && !isRounded ? 2 : 1),
    affine: isRounded ? 0 : train.affineEpochs * steps,
    fold: isRounded ? 0 : blocks * unit.fold,
    round: isRounded ? 0 : train.roundEpochs * steps,
    propagate: passes,
    polish: polishSeconds(work, unit),
    evaluation: 2 * evaluationWindows * (blocks * unit.pass + unit.head),
    export: (2 * bytes) / DISK_SPEED,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value > 0));
}

/** Steps through all blocks and the head, and after each epoch the windows that are held back. */
function polishSeconds({ model, settings, windows }: Workload, unit: UnitSeconds): number {
  const { blocks } = model.shape;
  if (settings.polish === 0) return 0;
  const held = heldBackWindows(windows);
  const step = blocks * unit.windowStep + 4 * unit.head;
  const pass = blocks * unit.pass + unit.head;
  return settings.polish * ((windows - held) * step + held * pass) + (windows + held) * pass;
}
