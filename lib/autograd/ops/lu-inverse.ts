import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "lu_inverse",
  forward: (x) => ({ tensor: invokeOne("lu_inverse", [tensorOf(x, 0)], { pivot: 0 }) }),
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
export function inverse(graph: Graph, a: Var): Var {
  return graph.apply(pair, [a], null);
}
