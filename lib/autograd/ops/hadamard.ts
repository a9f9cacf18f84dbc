import { invokeOne } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

/** An orthogonal matrix of size F = 2^k m, with m odd: diag(signs) (Hadamard of 2^k (x) odd) / sqrt(2^k). */
export interface HadamardFactors {
  /** [F], each 1 or -1. */
  readonly signs: Tensor;
  /** Orthogonal [m, m]; absent where m is 1. */
  readonly odd?: Tensor | undefined;
}

interface Params extends HadamardFactors {
  readonly inverse: boolean;
}

function transform(x: Tensor, { signs, odd }: HadamardFactors, inverse: boolean): Tensor {
  return invokeOne("hadamard", [x, signs, odd], { inverse: inverse ? 1 : 0 });
}

const pair: OpPair<Params> = {
  name: "hadamard",
  forward: (x, params) => ({ tensor: transform(tensorOf(x, 0), params, params.inverse) }),
  backward: ({ g, params }) => [transform(g, params, !params.inverse)],
};

/**
 * Each run of F values in the rows of x times the orthogonal matrix, or its transpose if `inverse`.
 * The factors are constants: they get no gradient, and the caller keeps them until after backward.
 */
export function hadamard(graph: Graph, x: Var, factors: HadamardFactors, inverse = false): Var {
  return graph.apply(pair, [x], { ...factors, inverse });
}
