import { invokeOne } from "../../tensor/invoke.ts";
import { keep } from "../../tensor/scope.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { InverseVar } from "../inverse.ts";
import { reshape } from "./reshape.ts";

/**
 * The last inverses of matrices that change little from step to step, by name: a GPU starts the next
 * one there. Results differ by rounding from those without a start, so whoever wants a run to repeat
 * begins it with an empty one. The maker disposes it.
 */
export class LastInverses {
  readonly #byName = new Map<string, Tensor>();

  get(name: string): Tensor | undefined {
    return this.#byName.get(name);
  }

  /**
   * The inverse of `a`, which takes the place of the last one: a step that was recorded looks for its
   * start, and leaves the next one's, where it did when it was recorded. So what the last step was given
   * must not be used any more. On the CPU a start is of no use.
   */
  next(name: string, a: Tensor): Tensor {
    const last = this.#byName.get(name);
    const inverse = invokeOne("lu_inverse", [a, last], { pivot: 0 }, last);
    if (!last && a.device !== "cpu") this.#byName.set(name, keep(inverse.reshape(inverse.shape)));
    return inverse;
  }

  dispose(): void {
    for (const tensor of this.#byName.values()) tensor.dispose();
    this.#byName.clear();
  }
}

/** Which of the last inverses is that of the matrix at hand. */
export interface WarmStart {
  readonly last: LastInverses;
  readonly name: string;
}

function inverted(a: Tensor, warm: WarmStart | undefined): Tensor {
  return warm ? warm.last.next(warm.name, a) : invokeOne("lu_inverse", [a], { pivot: 0 });
}

const pair: OpPair<WarmStart | undefined> = {
  name: "lu_inverse",
  forward: (x, warm) => ({ tensor: inverted(tensorOf(x, 0), warm) }),
  backward: ({ g, output }) => {
    // d(A^-1) = -A^-1 dA A^-1, so the gradient is -X^T G X^T.
    const left = invokeOne("matmul", [output.tensor, g], { trans_a: 1, trans_b: 0, alpha: 1 });
    const result = invokeOne("matmul", [left, output.tensor], {
      trans_a: 0,
      trans_b: 1,
      alpha: -1,
    });
    left.dispose();
    return [result];
  },
};

/** Inverses of [B, D, D] by batched LU. Throws: AQ_NUMERIC if one is singular. */
export function inverse(graph: Graph, a: Var, warm?: WarmStart): Var {
  return graph.apply(pair, [a], warm);
}

/**
 * The inverse [D, D] of one matrix [1, D, D] that activations are multiplied with. While a graph
 * records, its products are for throughInverse to find (see InverseVar).
 */
export function residueOf(graph: Graph, a: Var, warm?: WarmStart): Var {
  const { shape } = a.value.tensor;
  const rows = shape.slice(1);
  const dense = () => reshape(graph, inverse(graph, a, warm), rows);
  if (!graph.records) return dense();
  const matrices = inverted(a.value.tensor, warm);
  const constant = graph.constant(matrices.reshape(rows));
  matrices.dispose();
  return new InverseVar(a, constant, dense);
}
