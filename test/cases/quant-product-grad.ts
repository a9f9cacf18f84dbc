// Case of quant_product_grad: what a product, as its gradient, gives to a fake-quantized matrix.

import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { add } from "../reference/elementwise.ts";
import { matmul } from "../reference/linalg.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { type Dims, dim, input, type OpCase, param } from "./case.ts";
import { factorGradients } from "./fake-quant-grad.ts";
import { drawClip, drawFactors, drawGrid, drawOffset, gridOptions, scaled } from "./quantize.ts";

/**
 * N terms of the product; M, K: rows and columns of the matrix; t: trans_a; b 1: b is i8, beside f32;
 * wide 1: the matrix never lies short; x 1: it wants its gradient; add 1: to another one; the others as
 * of fake_quant_grad.
 */
const SETS: readonly Dims[] = [
  { N: 1, M: 1, K: 1, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, x: 1 },
  { N: 5, M: 7, K: 13, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, b: 1, x: 0 },
  { N: 9, M: 6, K: 40, group: 8, bits: 3, symmetric: 0, clip: 2, t: 0, x: 1, v: 1 },
  { N: 12, M: 5, K: 33, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, b: 1, x: 1, f: 3 },
  { N: 7, M: 9, K: 24, group: 0, bits: 4, symmetric: 0, clip: 1, t: 0, x: 0, add: 1 },
  { N: 7, M: 9, K: 24, group: 0, bits: 4, symmetric: 0, clip: 0, t: 1, b: 1, x: 0, v: 1 },
  { N: 6, M: 8, K: 24, group: 12, bits: 3, symmetric: 1, clip: 2, t: 1, x: 0, rule: 1 },
  { N: 64, M: 24, K: 96, group: 0, bits: 4, symmetric: 0, clip: 1, t: 0, b: 1, x: 1, wide: 1 },
  {
    N: 64,
    M: 9,
    K: 160,
    group: 0,
    bits: 4,
    clip: 0,
    symmetric: 0,
    t: 0,
    b: 1,
    x: 1,
    wide: 1,
    add: 1,
  },
  // Weights that a GPU takes in one kernel: tiles that are full or cut off, parts of groups.
  { N: 64, M: 256, K: 128, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, b: 1, x: 0 },
  { N: 16, M: 264, K: 272, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, x: 0, v: 1 },
  { N: 20, M: 72, K: 256, group: 128, bits: 3, symmetric: 0, clip: 2, t: 1, x: 0 },
  { N: 33, M: 136, K: 96, group: 32, bits: 2, symmetric: 0, clip: 2, t: 1, b: 1, x: 0, v: 1 },
  { N: 9, M: 40, K: 192, group: 64, bits: 2, symmetric: 1, clip: 2, t: 1, x: 0 },
  { N: 8, M: 16, K: 528, group: 256, bits: 4, symmetric: 0, clip: 2, t: 1, b: 1, x: 0 },
  { N: 70, M: 24, K: 144, group: 0, bits: 4, symmetric: 0, clip: 0, t: 1, x: 0, v: 1 },
  {
    N: 16,
    M: 40,
    K: 144,
    group: 0,
    bits: 4,
    symmetric: 0,
    clip: 2,
    t: 1,
    b: 1,
    x: 1,
    f: 3,
    add: 1,
  },
];

/**
 * Small whole numbers, whose products and sums bf16 holds exactly: the gradient is rounded to it on
 * the way, and which way it would go must not depend on the order of a sum.
 */
function drawWhole(draw: Draw, shape: readonly number[], most: number): Value {
  const { data } = draw.integers(shape, 2 * most + 1, "i32");
  return draw.value(
    data.map((code) => code - most),
    shape,
  );
}

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "K");

const quantProductGrad: OpCase = {
  op: "quant_product_grad",
  short: true,
  gradient: { forward: "fake_quant_gemm", kind: "rule" },
  sets: SETS,
  real: [
    { N: 2048, M: 4096, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 2, t: 1, b: 1, x: 0 },
    { N: 2048, M: 4096, K: 4096, group: 128, bits: 3, symmetric: 0, clip: 2, t: 1, x: 0, v: 1 },
    {
      N: 4096,
      M: 2048,
      K: 4096,
      group: 0,
      bits: 4,
      symmetric: 0,
      clip: 1,
      t: 0,
      b: 1,
      x: 1,
      wide: 1,
    },
  ],
  make: (draw, dims) => {
    const options = gridOptions(dims);
    const [N, M, K] = [dim(dims, "N"), options.M, options.K];
    const isWide = dims["wide"] === 1;
    const numbers = draw.normal([M, K]);
    const x = isWide ? numbers : draw.stored(numbers);
    const clip = drawClip(draw, dims);
    const factors = drawFactors(draw, dims, x);
    const a = draw.gradient(drawWhole(draw, dim(dims, "t") ? [N, M] : [M, N], 1));
    const b = drawWhole(draw, [N, K], 3);
    const isWhole = draw.dtype === "f32" && dims["b"] === 1;
    const scales = Float64Array.from({ length: N }, (_, i) => 1 / (1 + (i % 2)));
    const added = dims["add"] === 1 ? drawWhole(draw, [M, K], 5) : undefined;
    return {
      inputs: [
        a,
        isWhole ? { ...b, dtype: "i8" } : draw.stored(b),
        isWhole ? draw.value(scales, [N]) : undefined,
        added && !isWide ? draw.gradient(added) : added,
        x,
        ...drawGrid(draw, scaled(x, ...factors), clip, options),
        clip,
        drawOffset(draw, dims, x),
        ...factors,
      ],
      params: {
        bits: options.bits,
        group: options.group,
        symmetric: dim(dims, "symmetric"),
        floor: options.floor,
        need_gx: dim(dims, "x"),
        rule: dims["rule"] ?? 0,
        trans_a: dim(dims, "t"),
      },
    };
  },
  reference: (call) => {
    const [a, given, x] = [input(call, 0), input(call, 1), input(call, 4)];
    const [N, K] = given.shape as [number, number];
    const M = x.shape[0] as number;
    const scale = call.inputs[2]?.data;
    const b = given.data.map((code, i) => code * (scale?.[Math.floor(i / K)] ?? 1));
    const transA = param(call, "trans_a") === 1;
    const product = matmul(a.data, b, { B: 1, M, N: K, K: N }, { alpha: 1, transA, transB: false });
    const added = call.inputs[3]?.data;
    const gradient = added ? add(added, product, 1) : product;
    const options = {
      M,
      K,
      group: param(call, "group"),
      bits: param(call, "bits"),
      symmetric: param(call, "symmetric") === 1,
      floor: param(call, "floor"),
      roundF16: false,
      published: param(call, "rule") === 1,
    };
    const [clip, offset, r, c] = call.inputs.slice(7);
    const used = scaled(x, r, c).data;
    const { gx, gclip, gv } = fakeQuantGradient(used, clip?.data, gradient, options, offset?.data);
    const { gr, gc, gw } = factorGradients(gx, x, r, c);
    return [param(call, "need_gx") === 1 ? gw : new Float64Array(0), gclip, gv, gr, gc];
  },
  // Gradients are whole numbers of up to a hundred, and sums of them, with either sign, of many.
  tolerance: { f32: { rtol: 1e-4, atol: 5e-3 }, f64: { rtol: 1e-10, atol: 1e-9 } },
  bytes: (dims, size) =>
    (elements(dims) * (1 + 2 * (dims["v"] ?? 0) + dim(dims, "x")) +
      dim(dims, "N") * (dim(dims, "M") + dim(dims, "K"))) *
    size,
  flops: (dims) => 2 * dim(dims, "N") * elements(dims),
  bound: "flops",
};

export const CASES: readonly OpCase[] = [quantProductGrad];
