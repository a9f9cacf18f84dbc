/**
 * A Hadamard transform of the activation that the MLP's last linear reads, at run time. It spreads the
 * few large channels of that activation over all of them, where nothing that folds can; the linear's
 * weights take the inverse up, so that the block computes what it did.
 *
 * The matrix of size F = 2^k m, m odd: diag(signs) (Hadamard of 2^k (x) Hartley of m) / sqrt(2^k).
 * Signs are random; the rest follows from F, so that a reader of the file can make it again. Source:
 * QuaRot (arXiv 2404.00456), whose odd parts come from tables.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { type HadamardFactors, hadamard } from "../autograd/ops/hadamard.ts";
import { AqError } from "../errors.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { createRandom } from "../util/random.ts";
import type { BlockContext, HadamardDown, LinearSpec } from "./family.ts";
import type { LoadedWeights } from "./load.ts";

/** The activation that is transformed, by the name that blocks give it. */
const ACTIVATION = "down";
/** Keeps the signs apart from what else is drawn from the run's seed. */
const SEED_OFFSET = 2 ** 51;

/** The transform of a seed. */
export function randomHadamard(size: number, seed: number): HadamardDown {
  const random = createRandom(seed + SEED_OFFSET);
  return { signs: Int8Array.from({ length: size }, () => 1 - 2 * random.below(2)) };
}

/** The odd part of F, whose share of the work is m for each value; 1 costs nothing. */
export function oddPart(n: number): number {
  let odd = n;
  while (odd > 1 && odd % 2 === 0) odd /= 2;
  return odd;
}

/** The orthogonal matrix of the discrete Hartley transform, (cos t + sin t) / sqrt(m), t = 2 pi i j / m. */
function hartley(m: number): Float64Array {
  return Float64Array.from({ length: m * m }, (_, at) => {
    const t = (2 * Math.PI * ((Math.floor(at / m) * (at % m)) % m)) / m;
    return (Math.cos(t) + Math.sin(t)) / Math.sqrt(m);
  });
}

/** Its factors as tensors, which the caller owns. */
function factorsOf({ signs }: HadamardDown, dtype: "f32" | "f64", device: string): HadamardFactors {
  const tensor = (data: ArrayLike<number>, shape: number[]): Tensor =>
    Tensor.from(
      dtype === "f64" ? Float64Array.from(data) : Float32Array.from(data),
      shape,
      dtype,
      device,
    );
  const m = oddPart(signs.length);
  return {
    signs: tensor(signs, [signs.length]),
    odd: m > 1 ? tensor(hartley(m), [m, m]) : undefined,
  };
}

/** Adds the transform, if there is one, to what a block is given. Throws: AQ_MODEL for a wrong size. */
export function withHadamard(
  context: BlockContext,
  transform: HadamardDown | null,
  dtype: "f32" | "f64",
): BlockContext {
  if (!transform) return context;
  const factors = factorsOf(transform, dtype, context.device);
  return {
    ...context,
    hadamardDown: factors,
    dispose: () => {
      context.dispose();
      factors.signs.dispose();
      factors.odd?.dispose();
    },
  };
}

/** The same block as the checkpoint had it. It owns nothing: dispose the other one. */
export function withoutHadamard({ device, tensors }: BlockContext): BlockContext {
  return { device, tensors, dispose: () => {} };
}

/** The activation as its linear wants it. */
export function transformDown(graph: Graph, { hadamardDown }: BlockContext, x: Var): Var {
  return hadamardDown ? hadamard(graph, x, hadamardDown) : x;
}

/**
 * W <- W HF, in float64, of every linear that reads the activation, since x HF (W HF)t = x Wt. Takes
 * the weights over; the caller owns what it gets.
 */
export function foldHadamard(
  weights: LoadedWeights,
  linears: readonly LinearSpec[],
  transform: HadamardDown,
): LoadedWeights {
  const result = { ...weights };
  for (const { key } of linears.filter(({ activation }) => activation === ACTIVATION)) {
    const w = result[key];
    if (!w) throw new TypeError(`the block has no weight '${key}'`);
    result[key] = scope(() => {
      const { signs, odd } = factorsOf(transform, "f64", w.device);
      const double = invokeOne("cast", [w], { dtype: dtypeCode("f64") });
      const turned = invokeOne("hadamard", [double, signs, odd], { inverse: 0 });
      return invokeOne("cast", [turned], { dtype: dtypeCode("f32") });
    });
    w.dispose();
  }
  return result;
}

/** Throws: AQ_MODEL when the transform is not of the model's size. */
export function checkHadamard(
  transform: HadamardDown | undefined,
  mlp: number,
): HadamardDown | null {
  if (!transform) return null;
  const { length } = transform.signs;
  if (length !== mlp) {
    throw new AqError(
      "AQ_MODEL",
      `the Hadamard transform before down is of size ${length}, but the model's MLP has ${mlp} channels`,
    );
  }
  return transform;
}
