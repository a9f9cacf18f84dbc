import { dtypeCode } from "../../tensor/dtype.ts";
import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Value, type Var } from "../graph.ts";

/** An operand of the fused product: stored matrix, transposed or not, with its grid if it has one. */
interface Operand {
  readonly tensor: Tensor;
  readonly grid?: Grid | undefined;
  readonly transpose: boolean;
}

function product(a: Operand, b: Operand, bias?: Tensor, addTo?: Tensor): Tensor {
  if (a.grid?.offset || a.grid?.rows || a.grid?.columns) {
    throw new TypeError("linear: only the weight may have rounding offsets or factors");
  }
  const inputs = [
    a.tensor,
    b.tensor,
    a.grid?.scale,
    a.grid?.zero,
    b.grid?.scale,
    b.grid?.zero,
    bias,
    b.grid?.offset,
    b.grid?.rows,
    b.grid?.columns,
  ];
  const params = {
    trans_a: a.transpose ? 1 : 0,
    trans_b: b.transpose ? 1 : 0,
    a_bits: a.grid?.bits ?? 0,
    a_group: a.grid?.group ?? 0,
    b_bits: b.grid?.bits ?? 0,
    b_group: b.grid?.group ?? 0,
    accumulate: addTo ? 1 : 0,
  };
  if (!addTo) return invokeOne("fake_quant_gemm", inputs, params);
  invokeOne("fake_quant_gemm", inputs, params, addTo).dispose();
  return addTo;
}

const plain = (tensor: Tensor, transpose: boolean): Operand => ({ tensor, transpose });
const operandOf = ({ tensor, grid }: Value, transpose: boolean): Operand => ({
  tensor,
  grid,
  transpose,
});

/** Sums over the rows of g [M, N], as the product with a row of ones, in the bias's own shape. */
export function columnSums(g: Tensor, bias: Tensor): Tensor {
  const n = g.shape.at(-1) as number;
  const ones = Tensor.empty([1, g.size / n], g.dtype, g.device);
  invoke("fill", [ones], { value: 1 });
  const sums = product(plain(ones, false), plain(g, false));
  ones.dispose();
  return shapedLike(sums, bias);
}

/**
 * A gradient in the shape of its input: a bias may be a column [N, 1] and a weight of one row a
 * vector [I], and the ops behind them want their gradients so.
 */
function shapedLike(gradient: Tensor, { shape }: Tensor): Tensor {
  const same = gradient.shape.length === shape.length;
  if (same && shape.every((d, i) => d === gradient.shape[i])) return gradient;
  const view = gradient.reshape(shape);
  gradient.dispose();
  return view;
}

/** An operand of several products, in the type that the device multiplies in. */
function rounded(g: Tensor): Tensor {
  const precision = g.dtype === "f32" ? precisionOf(g.device) : "f32";
  if (precision === "f32") return g;
  return invokeOne("cast", [g], { dtype: dtypeCode(precision) });
}

const pair: OpPair<null> = {
  name: "linear",
  forward: ([x, w, bias]) => ({
    tensor: product(operandOf(x as Value, false), operandOf(w as Value, true), bias?.tensor),
  }),
  backward: ({ g, inputs, needs, existing }) => {
    const [x, w] = inputs as readonly [Value, Value];
    const left = needs[0] && needs[1] ? rounded(g) : g;
    const gradients = [
      needs[0]
        ? shapedLike(
            product(plain(left, false), operandOf(w, false), undefined, existing[0]),
            x.tensor,
          )
        : undefined,
      needs[1]
        ? shapedLike(
            product(plain(left, true), operandOf(x, false), undefined, existing[1]),
            w.tensor,
          )
        : undefined,
      needs[2] ? columnSums(g, tensorOf(inputs, 2)) : undefined,
    ];
    if (left !== g) left.dispose();
    return gradients;
  },
};

/**
 * y = x Wt + b with x [..., I], W [O, I], b [O]; either operand may be lazily fake-quantized. All of
 * it, forward and both gradients, is the fused fake-quant GEMM.
 */
export function linear(graph: Graph, x: Var, w: Var, bias?: Var): Var {
  return graph.apply(pair, [x, w, bias], null);
}
