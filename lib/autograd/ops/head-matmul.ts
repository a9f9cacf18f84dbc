import { dtypeCode } from "../../tensor/dtype.ts";
import { invokeOne } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Value, type Var } from "../graph.ts";
import { underColumns, underRows } from "./scale-weight.ts";

/** How per-head matrices meet a weight. */
export interface HeadMatmulParams {
  /** "rows": W [heads*D, I] from the left; "columns": W [O, heads*D] from the right. */
  readonly side: "rows" | "columns";
  readonly transpose: boolean;
  /** Heads along that side; the matrices [Hkv, D, D] are shared by groups of heads/Hkv. */
  readonly heads: number;
}

/** A matrix of so many rows is small beside its weights, and products read it as it is. */
const SMALL = 128;

const pair: OpPair<HeadMatmulParams> = {
  name: "head_matmul",
  forward: (x, p) => {
    const w = tensorOf(x, 0);
    return { tensor: invokeOne("head_matmul", [w, matrixFor(w, x[1])], native(p, p.transpose)) };
  },
  backward: ({ g, inputs, needs, existing, params: p }) => {
    const w = tensorOf(inputs, 0);
    return [
      needs[0]
        ? invokeOne("head_matmul", [g, matrixFor(g, inputs[1])], native(p, !p.transpose))
        : undefined,
      needs[1] ? matrixGradient(w, g, tensorOf(inputs, 1), p, existing[1]) : undefined,
    ];
  },
};

/** The matrices as a product with `w` reads them: large ones are rounded once for all the weights. */
function matrixFor(w: Tensor, m: Value | undefined): Tensor {
  if (!m) throw new TypeError("head_matmul needs its matrices");
  const { tensor } = m;
  const precision = precisionOf(w.device);
  if ((tensor.shape.at(-1) as number) <= SMALL || precision === "f32" || w.dtype !== precision) {
    return tensor;
  }
  m.rounded ??= invokeOne("cast", [tensor], { dtype: dtypeCode(precision) });
  return m.rounded;
}

/** The gradient of the matrices, added to what there is of it. */
function matrixGradient(
  w: Tensor,
  g: Tensor,
  m: Tensor,
  p: HeadMatmulParams,
  known: Tensor | undefined,
): Tensor {
  const addTo = known?.dtype === m.dtype ? known : undefined;
  const params = {
    ...native(p, p.transpose),
    kv_heads: m.shape[0] as number,
    accumulate: addTo ? 1 : 0,
  };
  if (!addTo) return invokeOne("head_matmul_grad", [w, g], params);
  invokeOne("head_matmul_grad", [w, g], params, addTo).dispose();
  return addTo;
}

function native(
  p: HeadMatmulParams,
  transpose: boolean,
): { side: number; transpose: number; heads: number } {
  return { side: p.side === "rows" ? 0 : 1, transpose: transpose ? 1 : 0, heads: p.heads };
}

/** Each head's slice of W multiplied by its kv head's D x D matrix. */
export function headMatmul(graph: Graph, w: Var, m: Var, params: HeadMatmulParams): Var {
  const multiply = (x: Var): Var => graph.apply(pair, [x, m], params);
  return params.side === "rows" ? underColumns(graph, w, multiply) : underRows(graph, w, multiply);
}
