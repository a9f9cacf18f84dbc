import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { underColumns } from "./scale-weight.ts";

/** How per-head matrices meet a weight. */
export interface HeadMatmulParams {
  /** "rows": W [heads*D, I] from the left; "columns": W [O, heads*D] from the right. */
  readonly side: "rows" | "columns";
  readonly transpose: boolean;
  /** Heads along that side; the matrices [Hkv, D, D] are shared by groups of heads/Hkv. */
  readonly heads: number;
}

const pair: OpPair<HeadMatmulParams> = {
  name: "head_matmul",
  forward: (x, p) => ({
    tensor: invokeOne("head_matmul", [tensorOf(x, 0), tensorOf(x, 1)], native(p, p.transpose)),
  }),
  backward: ({ g, inputs, needs, params: p }) => {
    const w = tensorOf(inputs, 0);
    const m = tensorOf(inputs, 1);
    return [
      needs[0] ? invokeOne("head_matmul", [g, m], native(p, !p.transpose)) : undefined,
      needs[1]
        ? invokeOne("head_matmul_grad", [w, g], {
            ...native(p, p.transpose),
            kv_heads: m.shape[0] as number,
          })
        : undefined,
    ];
  },
};

function native(
  p: HeadMatmulParams,
  transpose: boolean,
): { side: number; transpose: number; heads: number } {
  return { side: p.side === "rows" ? 0 : 1, transpose: transpose ? 1 : 0, heads: p.heads };
}

/** Each head's slice of W multiplied by its kv head's D x D matrix. */
export function headMatmul(graph: Graph, w: Var, m: Var, params: HeadMatmulParams): Var {
  const multiply = (x: Var): Var => graph.apply(pair, [x, m], params);
  return params.side === "rows" ? underColumns(graph, w, multiply) : multiply(w);
}
