// Cases of packed 4-bit floats: fp4_pack and fp4_matmul.
import type { Draw } from "../helpers/random.ts";
import { roundTo, type Value } from "../helpers/value.ts";
import { fp4Quantize, fp4Values, globalOf, groupSize, scaleOf } from "../reference/fp4.ts";
import { packFp4, unpackFp4 } from "../reference/fp4-matmul.ts";
import { matmul } from "../reference/linalg.ts";
import { type Dims, dim, EXACT, input, type OpCase, param, SUMMED } from "./case.ts";

const PACK_SETS: readonly Dims[] = [
  { O: 1, I: 16, format: 0 },
  { O: 16, I: 128, format: 0 },
  { O: 23, I: 208, format: 0 },
  { O: 33, I: 1040, format: 0 },
  { O: 1, I: 32, format: 1 },
  { O: 40, I: 288, format: 1 },
];

const REAL_PACK: readonly Dims[] = [
  { O: 1376, I: 512, format: 0 },
  { O: 8192, I: 8192, format: 0 },
  { O: 4096, I: 4096, format: 1 },
];

/** Codes of all values, and scales over several powers of two, subnormal ones of e4m3fn included. */
function drawCodes(draw: Draw, dims: Dims): readonly [codes: Value, scale: Value] {
  const [O, I, format] = [dim(dims, "O"), dim(dims, "I"), dim(dims, "format")];
  const shape = [O, I / groupSize(format)];
  const a = draw.uniform(shape, -6, -1).data.map((exponent) => 2 ** exponent);
  const scale = a.map((value) => scaleOf(value, 1, format));
  return [draw.integers([O, I], 16, "u8"), draw.value(scale, shape)];
}

const fp4Pack: OpCase = {
  op: "fp4_pack",
  sets: PACK_SETS,
  real: REAL_PACK,
  make: (draw, dims) => ({
    inputs: drawCodes(draw, dims),
    params: { format: dim(dims, "format") },
  }),
  reference: (call) => {
    const [codes, scale] = [input(call, 0), input(call, 1)];
    const [O, I] = codes.shape as [number, number];
    const format = param(call, "format");
    const packed = packFp4({ O, I, format, codes: codes.data, scale: scale.data });
    return [packed.codes, packed.scale];
  },
  tolerance: EXACT,
  bytes: (dims) => 1.5 * dim(dims, "O") * dim(dims, "I"),
  flops: (dims) => dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
};

/**
 * factor 1: the product has one. tokens 1: x is quantized, tg 1: with a global scale. half 1 (2): x is
 * bf16 (f16), and all numbers are so round that the result is exact in it.
 */
const PRODUCT_SETS: readonly Dims[] = [
  ...[0, 1].flatMap((format) => [
    { M: 1, O: 1, I: 32, format, factor: 0, bias: 1, tokens: 0, half: 0 },
    { M: 1, O: 70, I: 256, format, factor: 1, bias: 0, tokens: 0, half: 0 },
    { M: 3, O: 40, I: 160, format, factor: 1, bias: 1, tokens: 0, half: 0 },
    { M: 9, O: 33, I: 288, format, factor: 0, bias: 0, tokens: 0, half: 0 },
    { M: 16, O: 100, I: 1120, format, factor: 1, bias: 1, tokens: 0, half: 0 },
    { M: 17, O: 64, I: 544, format, factor: 1, bias: 1, tokens: 0, half: 0 },
    { M: 70, O: 150, I: 384, format, factor: 0, bias: 0, tokens: 0, half: 0 },
    { M: 2, O: 40, I: 256, format, factor: 1, bias: 1, tokens: 1, half: 0 },
    { M: 35, O: 90, I: 1184, format, factor: 1, bias: 0, tokens: 1, half: 0 },
  ]),
  { M: 5, O: 33, I: 208, format: 0, factor: 1, bias: 0, tokens: 1, tg: 1, half: 0 },
  { M: 70, O: 17, I: 80, format: 0, factor: 1, bias: 1, tokens: 1, tg: 1, half: 0 },
  ...[1, 2].flatMap((half) => [
    { M: 1, O: 40, I: 64, format: 0, factor: 1, bias: 0, tokens: 0, half },
    { M: 5, O: 70, I: 64, format: 1, factor: 0, bias: 1, tokens: 0, half },
    { M: 13, O: 33, I: 48, format: 0, factor: 1, bias: 1, tokens: 0, half },
    { M: 61, O: 130, I: 64, format: 1, factor: 1, bias: 1, tokens: 0, half },
    { M: 100, O: 260, I: 48, format: 0, factor: 1, bias: 1, tokens: 0, half },
    { M: 7, O: 70, I: 1120, format: 0, factor: 0, bias: 0, tokens: 0, half },
    { M: 66, O: 130, I: 1120, format: 1, factor: 1, bias: 0, tokens: 0, half },
    { M: 18, O: 40, I: 64, format: 0, factor: 1, bias: 1, tokens: 1, half },
    { M: 3, O: 40, I: 64, format: 1, factor: 1, bias: 1, tokens: 1, half },
  ]),
];

const REAL: readonly Dims[] = [
  ...[1, 4, 16, 64, 2048].map((M) => ({ M, O: 4096, I: 4096, tokens: 0, half: 1 })),
  { M: 16, O: 11008, I: 4096, tokens: 0, half: 1 },
  { M: 1, O: 8192, I: 8192, tokens: 0, half: 1 },
  { M: 16, O: 4096, I: 4096, tokens: 1, half: 1 },
  { M: 1, O: 4096, I: 4096, tokens: 0, half: 0 },
  { M: 16, O: 4096, I: 4096, tokens: 0, half: 0 },
  { M: 1, O: 4096, I: 4096, format: 1, tokens: 0, half: 0 },
].map((dims) => ({ format: 0, factor: 1, bias: 0, ...dims }));

/** Numbers of few bits, in halves, whose products with such weights every sum holds exactly. */
function drawWhole(draw: Draw, dims: Dims, half: "bf16" | "f16"): readonly [Value, Value, Value[]] {
  const [M, O, I] = [dim(dims, "M"), dim(dims, "O"), dim(dims, "I")];
  const [codes, scale] = drawCodes(draw, dims);
  const rare = (dims["tokens"] ?? 0) || I <= 64 ? 0.8 : 0.3;
  const x = draw.normal([M, I]).data.map((v, i) => {
    // Quantized rows have a 6 in every group, so that their scales are 1.
    if (dims["tokens"] && i % 16 === 0) return 6;
    return Math.max(-1, Math.min(1, Math.round(v * rare)));
  });
  return [
    { data: x, shape: [M, I], dtype: half },
    { data: draw.normal([O]).data.map(Math.round), shape: [O], dtype: half },
    // Numbers 0, +-1, +-2 with scales 1 and 2.
    [
      { ...codes, data: codes.data.map((code) => [0, 2, 4, 10, 12][code % 5] as number) },
      { ...scale, data: scale.data.map((_, i) => 2 ** -(i % 2)) },
    ],
  ];
}

const fp4Matmul: OpCase = {
  op: "fp4_matmul",
  sets: PRODUCT_SETS,
  real: REAL,
  make: (draw, dims) => {
    const [M, O, I, format] = [dim(dims, "M"), dim(dims, "O"), dim(dims, "I"), dim(dims, "format")];
    const half = ([undefined, "bf16", "f16"] as const)[dim(dims, "half")];
    let [x, bias]: [Value, Value] = [draw.normal([M, I]), draw.normal([O])];
    let weights: readonly Value[] = drawCodes(draw, dims);
    if (half) [x, bias, weights] = drawWhole(draw, dims, half);
    const [codes, scale] = weights as [Value, Value];
    const packed = packFp4({ O, I, format, codes: codes.data, scale: scale.data });
    const one = (value: number): Value => {
      const dtype = half ? "f32" : draw.dtype;
      return { data: Float64Array.of(roundTo(value, dtype)), shape: [1], dtype };
    };
    return {
      inputs: [
        x,
        { data: packed.codes, shape: packed.codesShape, dtype: "u8" },
        { data: packed.scale, shape: packed.scaleShape, dtype: "u8" },
        dim(dims, "factor") ? one(half ? 0.5 : 0.37) : undefined,
        dim(dims, "bias") ? bias : undefined,
        dims["tg"] ? one(119.3) : undefined,
      ],
      params: { outputs: O, format, tokens: dim(dims, "tokens") },
    };
  },
  reference: (call) => {
    const x = input(call, 0);
    const [M, I] = x.shape as [number, number];
    const [O, format] = [param(call, "outputs"), param(call, "format")];
    const [codes, scale] = [input(call, 1).data, input(call, 2).data];
    const w = unpackFp4({ codes, scale }, { O, I, format });
    const g = globalOf(call.inputs[5]?.data);
    let used = x.data;
    if (param(call, "tokens") === 1) {
      const tokens = fp4Quantize(x.data, { M, K: I, format, g });
      used = fp4Values(tokens.codes, tokens.scale, { K: I, format, g });
    }
    const sizes = { B: 1, M, N: O, K: I };
    const y = matmul(used, w, sizes, { alpha: 1, transA: false, transB: true });
    const factor = call.inputs[3]?.data[0] ?? 1;
    const bias = call.inputs[4]?.data;
    return [y.map((sum, i) => factor * sum + (bias?.[i % O] ?? 0))];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => {
    const [M, O, I] = [dim(dims, "M"), dim(dims, "O"), dim(dims, "I")];
    return O * I * (0.5 + 1 / groupSize(dim(dims, "format"))) + M * (O + I) * size;
  },
  flops: (dims) => 2 * dim(dims, "M") * dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [fp4Pack, fp4Matmul];
