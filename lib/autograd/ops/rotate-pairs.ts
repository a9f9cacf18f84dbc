import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { underColumns } from "./scale-weight.ts";

interface RotatePairsParams {
  readonly heads: number;
  /** 1: by r = e^log_r; -1: by 1/r. */
  readonly signR: 1 | -1;
}

const pair: OpPair<RotatePairsParams> = {
  name: "rotate_pairs",
  forward: (x, { heads, signR }) => ({
    tensor: invokeOne("rotate_pairs", [tensorOf(x, 0), tensorOf(x, 1), tensorOf(x, 2)], {
      heads,
      sign_r: signR,
      sign_theta: 1,
    }),
  }),
  backward: ({ g, inputs, output, needs, params: { heads, signR } }) => {
    const logR = tensorOf(inputs, 1);
    const gw = needs[0]
      ? invokeOne("rotate_pairs", [g, logR, tensorOf(inputs, 2)], {
          heads,
          sign_r: signR,
          sign_theta: -1,
        })
      : undefined;
    const [gLogR, gTheta] =
      needs[1] || needs[2]
        ? invoke("rotate_pairs_grad", [output.tensor, g], {
            heads,
            kv_heads: logR.shape[0] as number,
            sign_r: signR,
            sign_theta: 1,
          })
        : [];
    return [gw, gLogR, gTheta];
  },
};

/**
 * Rows (i, i + D/2) of every head of W [heads*D, I] scaled by r^signR and rotated by theta; log r and
 * theta are [Hkv, D/2]. Commutes with RoPE, which rotates the same pairs.
 */
export function rotatePairs(
  graph: Graph,
  w: Var,
  logR: Var,
  theta: Var,
  params: RotatePairsParams,
): Var {
  return underColumns(graph, w, (x) => graph.apply(pair, [x, logR, theta], params));
}
