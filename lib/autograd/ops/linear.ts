import { type DType, dtypeCode } from "../../tensor/dtype.ts";
import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { FLOAT4_FORMATS } from "../float4.ts";
import {
  type Graph,
  type Grid,
  gradientType,
  materialize,
  type OpPair,
  type PackedCodes,
  type PackedFloats,
  tensorOf,
  type Value,
  type Var,
} from "../graph.ts";

/** An operand of the fused product: stored matrix, transposed or not, with its grid if it has one. */
export interface Operand {
  readonly tensor: Tensor;
  readonly grid?: Grid | undefined;
  /** Without a grid: scales of the rows of whole numbers, or one factor of all numbers. */
  readonly scale?: Tensor | undefined;
  readonly transpose: boolean;
}

/** Where the product goes. */
export interface Result {
  readonly bias?: Tensor | undefined;
  /** What it is added to, in place. */
  readonly addTo?: Tensor | undefined;
  /** In bf16. */
  readonly isShort?: boolean;
}

/** The product of two operands. */
export function product(
  a: Operand,
  b: Operand,
  { bias, addTo, isShort = false }: Result = {},
): Tensor {
  if (a.grid?.offset || a.grid?.rows || a.grid?.columns) {
    throw new TypeError("linear: only the weight may have rounding offsets or factors");
  }
  const inputs = [
    a.tensor,
    b.tensor,
    a.scale ?? a.grid?.scale,
    a.grid?.zero,
    b.scale ?? b.grid?.scale,
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
    bf16: isShort ? 1 : 0,
  };
  if (!addTo) return invokeOne("fake_quant_gemm", inputs, params);
  invokeOne("fake_quant_gemm", inputs, params, addTo).dispose();
  return addTo;
}

/** A tensor as it is. */
export const plain = (tensor: Tensor, transpose: boolean): Operand => ({ tensor, transpose });

/** The input of linears for the gradient of a weight: values, where they lie beside whole numbers. */
function gradientInput(x: Value): Operand {
  return x.grid && x.rounded ? plain(x.rounded, false) : inputOperand(x, false);
}

/** An operand as it is, or as it was quantized for products. */
function operandOf({ tensor, grid, float4 }: Value, transpose: boolean): Operand {
  if (float4) return { tensor: float4.made.values, scale: float4.made.factor, transpose };
  const quantized = grid?.quantized;
  if (!quantized) return { tensor, grid, transpose };
  return { tensor: quantized, scale: quantized.dtype === "i8" ? grid.scale : undefined, transpose };
}

/** The input of linears, which several may read: rounded once for all of them, forward and back. */
export function inputOperand(x: Value, transpose: boolean): Operand {
  if (x.grid || x.float4 || x.tensor.dtype !== "f32") return operandOf(x, transpose);
  const precision = precisionOf(x.tensor.device);
  if (precision === "f32") return plain(x.tensor, transpose);
  x.rounded ??= invokeOne("cast", [x.tensor], { dtype: dtypeCode(precision) });
  return plain(x.rounded, transpose);
}

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

const isShort = (dtype: DType): boolean => dtype === "f16" || dtype === "bf16";

/** x times packed codes; tokens on a grid of whole rows are multiplied as whole numbers. */
function packedProduct(x: Value, { tensor, packed }: Value, bias: Tensor | undefined): Tensor {
  if (packed && "kind" in packed) return floatsProduct(x, tensor, packed, bias);
  const { bits, scale, zero, outputs, group } = packed as PackedCodes;
  const columns = x.tensor.shape.at(-1) as number;
  const onRows = x.grid && (x.grid.group === 0 || x.grid.group >= columns);
  const own = (x.grid && !onRows) || x.float4 ? materialize(x) : x.tensor;
  const grid = onRows ? x.grid : undefined;
  const inputs = [own, tensor, scale, zero, bias, grid?.scale, grid?.zero];
  const params = { outputs, group, x_bits: grid?.bits ?? 0 };
  const y =
    bits === 8
      ? invokeOne("int8_matmul", inputs, params)
      : invokeOne("int4_matmul", inputs, { ...params, wide: isShort(own.dtype) ? 1 : 0 });
  if (own !== x.tensor) own.dispose();
  return y;
}

/** x times packed 4-bit floats; tokens of the same format are quantized on the way. */
function floatsProduct(
  x: Value,
  codes: Tensor,
  { format, scale, factor, outputs }: PackedFloats,
  bias: Tensor | undefined,
): Tensor {
  const tokens = x.float4?.source;
  const isOwn = tokens !== undefined && FLOAT4_FORMATS[tokens.format] === format;
  const own = (x.float4 && !isOwn) || x.grid ? materialize(x) : x.tensor;
  const inputs = [own, codes, scale, factor, bias, isOwn ? tokens.global : undefined];
  const y = invokeOne("fp4_matmul", inputs, { outputs, format, tokens: isOwn ? 1 : 0 });
  if (own !== x.tensor) own.dispose();
  return y;
}

const pair: OpPair<null> = {
  name: "linear",
  forward: ([x, w, bias]) => ({
    tensor: w?.packed
      ? packedProduct(x as Value, w, bias?.tensor)
      : product(inputOperand(x as Value, false), operandOf(w as Value, true), {
          bias: bias?.tensor,
        }),
  }),
  backward: ({ g, inputs, needs, existing }) => {
    const [x, w] = inputs as readonly [Value, Value];
    const left = needs[0] && needs[1] ? rounded(g) : g;
    const gradientOf = (i: 0 | 1, leftTransposed: boolean, other: Operand): Tensor => {
      const value = i === 0 ? x : w;
      const result = { addTo: existing[i], isShort: isShort(gradientType(value)) };
      return shapedLike(product(plain(left, leftTransposed), other, result), value.tensor);
    };
    const gradients = [
      needs[0] ? gradientOf(0, false, operandOf(w, false)) : undefined,
      needs[1] ? gradientOf(1, true, gradientInput(x)) : undefined,
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
