// The two ops of a packed order, int4's and int8's: packing codes and the product with activations.
import { F16, roundHalf } from "../helpers/half.ts";
import type { Draw } from "../helpers/random.ts";
import { sizeOf, type Value } from "../helpers/value.ts";
import { matmul } from "../reference/linalg.ts";
import { at } from "../reference/numbers.ts";
import type { Codes, Packed } from "../reference/packed.ts";
import { fakeQuant, groupCount, quantGrid } from "../reference/quantize.ts";
import { type Dims, dim, EXACT, input, type OpCase, param, SUMMED } from "./case.ts";
import { TOKEN_FLOOR } from "./quantize.ts";

/** A packed order. */
export interface Order {
  readonly pack: string;
  readonly product: string;
  /** Bits that a code takes. */
  readonly bits: number;
  readonly packed: (codes: Codes) => Packed;
  readonly unpacked: (
    packed: Pick<Packed, "codes" | "scale" | "zero">,
    sizes: { readonly O: number; readonly I: number; readonly group: number },
  ) => Float64Array;
}

/** Sizes of matrices; `less` is how many bits below an order's a code has. */
const PACK_SETS: readonly Dims[] = [
  { O: 1, I: 1, group: 0, less: 0 },
  { O: 16, I: 128, group: 32, less: 0 },
  { O: 23, I: 200, group: 64, less: 0 },
  { O: 48, I: 300, group: 128, less: 1 },
  { O: 33, I: 515, group: 256, less: 2 },
  { O: 9, I: 77, group: 0, less: 3 },
];

const PACK_REAL: readonly Dims[] = [
  { O: 1376, I: 512, group: 0, less: 0 },
  { O: 8192, I: 8192, group: 128, less: 0 },
];

/**
 * x: bits of the tokens' grid, 0 without one. half 1 (2): x is bf16 (f16), and all numbers are so
 * round that the result is exact in it.
 */
const PRODUCT_SETS: readonly Dims[] = [
  { M: 1, O: 1, I: 1, group: 0, less: 0, x: 0, bias: 1, half: 0 },
  { M: 1, O: 70, I: 256, group: 128, less: 0, x: 0, bias: 0, half: 0 },
  { M: 3, O: 40, I: 200, group: 64, less: 0, x: 0, bias: 1, half: 0 },
  { M: 9, O: 33, I: 300, group: 32, less: 1, x: 0, bias: 0, half: 0 },
  { M: 17, O: 64, I: 515, group: 256, less: 2, x: 0, bias: 1, half: 0 },
  { M: 70, O: 150, I: 384, group: 0, less: 0, x: 0, bias: 0, half: 0 },
  { M: 2, O: 40, I: 256, group: 128, less: 0, x: 8, bias: 1, half: 0 },
  { M: 1, O: 70, I: 384, group: 64, less: 0, x: 8, bias: 0, half: 0 },
  { M: 5, O: 40, I: 300, group: 0, less: 0, x: 8, bias: 1, half: 0 },
  { M: 3, O: 33, I: 200, group: 32, less: 1, x: 6, bias: 0, half: 0 },
  { M: 19, O: 33, I: 200, group: 32, less: 0, x: 4, bias: 0, half: 0 },
  { M: 35, O: 90, I: 130, group: 64, less: 1, x: 8, bias: 0, half: 0 },
  { M: 70, O: 17, I: 77, group: 0, less: 2, x: 6, bias: 1, half: 0 },
  { M: 130, O: 80, I: 640, group: 128, less: 0, x: 8, bias: 0, half: 0 },
  // So many rows that blocks of a large GPU have more of them.
  { M: 2, O: 4300, I: 70, group: 32, less: 0, x: 0, bias: 1, half: 0 },
  { M: 7, O: 6500, I: 130, group: 64, less: 0, x: 0, bias: 1, half: 0 },
  { M: 8, O: 11000, I: 100, group: 0, less: 1, x: 0, bias: 1, half: 0 },
  { M: 3, O: 8500, I: 64, group: 32, less: 0, x: 8, bias: 1, half: 0 },
  { M: 8, O: 10600, I: 136, group: 32, less: 0, x: 0, bias: 0, half: 2 },
  { M: 3, O: 17000, I: 192, group: 64, less: 0, x: 0, bias: 0, half: 1 },
  ...[1, 2].flatMap((half) => [
    { M: 1, O: 40, I: 64, group: 32, less: 0, x: 0, bias: 0, half },
    { M: 5, O: 70, I: 64, group: 0, less: 0, x: 0, bias: 1, half },
    { M: 13, O: 33, I: 56, group: 32, less: 1, x: 0, bias: 1, half },
    { M: 30, O: 66, I: 40, group: 64, less: 0, x: 0, bias: 0, half },
    { M: 61, O: 130, I: 64, group: 32, less: 1, x: 0, bias: 1, half },
    { M: 100, O: 260, I: 33, group: 32, less: 0, x: 0, bias: 1, half },
    { M: 300, O: 40, I: 64, group: 64, less: 0, x: 0, bias: 1, half },
    { M: 7, O: 70, I: 2100, group: 128, less: 0, x: 0, bias: 0, half },
    { M: 66, O: 130, I: 1104, group: 128, less: 0, x: 0, bias: 0, half },
    { M: 18, O: 40, I: 60, group: 32, less: 0, x: 4, bias: 1, half },
    { M: 129, O: 40, I: 1090, group: 32, less: 0, x: 0, bias: 1, half },
  ]),
];

const PRODUCT_REAL: readonly Dims[] = [
  ...[1, 16, 64, 2048].map((M) => ({ M, O: 4096, I: 4096, group: 128, x: 0, half: 1 })),
  { M: 16, O: 11008, I: 4096, group: 128, x: 0, half: 1 },
  { M: 16, O: 4096, I: 4096, group: 128, x: 8, half: 0 },
  { M: 16, O: 4096, I: 4096, group: 128, x: 0, half: 0 },
  ...[1, 8].map((M) => ({ M, O: 11008, I: 4096, group: 128, x: 0, half: 0 })),
  { M: 1, O: 11008, I: 4096, group: 0, x: 8, half: 0 },
].map((dims) => ({ ...dims, less: 0, bias: 0 }));

/** Scales and zeros that a packed matrix can hold, and codes of all values. */
function drawCodes(
  draw: Draw,
  dims: Dims,
  most: number,
): readonly [codes: Value, scale: Value, zero: Value] {
  const [O, I, bits] = [dim(dims, "O"), dim(dims, "I"), most - dim(dims, "less")];
  const grid = [O, groupCount({ M: O, K: I, group: dim(dims, "group") })];
  // Weights of about the same size at any number of bits.
  const step = 2 ** Math.min(0, 4 - bits);
  const scale = draw.uniform(grid, 0.01, 0.04).data.map((s) => roundHalf(s * step, F16));
  const zero = Float64Array.from({ length: sizeOf(grid) }, (_, i) => (i * 7 + O) % 2 ** bits);
  return [draw.integers([O, I], 2 ** bits, "u8"), draw.value(scale, grid), draw.value(zero, grid)];
}

function codesOf(dims: Dims, [codes, scale, zero]: readonly [Value, Value, Value]): Codes {
  const [O, I, group] = [dim(dims, "O"), dim(dims, "I"), dim(dims, "group")];
  return { O, I, group, codes: codes.data, scale: scale.data, zero: zero.data };
}

const packCase = ({ pack, packed: packedOf, bits }: Order): OpCase => ({
  op: pack,
  sets: PACK_SETS,
  real: PACK_REAL,
  make: (draw, dims) => ({
    inputs: drawCodes(draw, dims, bits),
    params: { group: dim(dims, "group") },
  }),
  reference: (call) => {
    const [codes, scale, zero] = [input(call, 0), input(call, 1), input(call, 2)];
    const [O, I] = codes.shape as [number, number];
    const packed = packedOf({
      ...{ O, I, group: param(call, "group") },
      ...{ codes: codes.data, scale: scale.data, zero: zero.data },
    });
    return [packed.codes, packed.scale, packed.zero];
  },
  tolerance: EXACT,
  bytes: (dims) => (1 + bits / 8) * dim(dims, "O") * dim(dims, "I"),
  flops: (dims) => dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
});

/** Scale and zero of every row of x; of x in halves such that its whole numbers stay what they are. */
function drawTokenGrid(draw: Draw, x: Value, bits: number): readonly [scale: Value, zero: Value] {
  const [M, K] = x.shape as [number, number];
  if (x.dtype) {
    const all = (value: number): Value => ({
      data: new Float64Array(M).fill(value),
      shape: [M],
      dtype: "f32",
    });
    return [all(0.5), all(2 ** (bits - 1))];
  }
  const { scale, zero } = quantGrid(x.data, undefined, {
    ...{ M, K, group: 0, bits, floor: TOKEN_FLOOR, symmetric: false, roundF16: false },
  });
  return [draw.value(scale, [M]), draw.value(zero, [M])];
}

/** x, away from the middle between two codes, where f32 and f64 may choose differently. */
function awayFromMiddles(draw: Draw, x: Value, scale: Value): Value {
  const K = x.shape[1] ?? 1;
  const moved = x.data.map((v, i) => {
    const s = at(scale.data, Math.floor(i / K));
    const code = Math.round(v / s);
    return s * (code + 0.9 * (v / s - code));
  });
  return draw.value(moved, x.shape);
}

const productCase = ({ product, packed: packedOf, unpacked, bits: codeBits }: Order): OpCase => ({
  op: product,
  sets: PRODUCT_SETS,
  real: PRODUCT_REAL,
  make: (draw, dims) => {
    const [M, O, I] = [dim(dims, "M"), dim(dims, "O"), dim(dims, "I")];
    const half = ([undefined, "bf16", "f16"] as const)[dim(dims, "half")];
    let [codes, scale, zero] = drawCodes(draw, dims, codeBits);
    let x = draw.normal([M, I]);
    let bias = draw.normal([O]);
    if (half) {
      // Whole numbers times powers of two: every sum is exact, and few bits wide.
      const whole = ({ data, shape }: Value, round: (v: number) => number): Value => ({
        data: data.map(round),
        shape,
        dtype: half,
      });
      const factor = I > 64 ? 0.22 : 0.8;
      x = whole(x, (v) => Math.max(-1, Math.min(1, Math.round(v * factor))));
      bias = whole(bias, Math.round);
      scale = { ...scale, data: scale.data.map((_, i) => 2 ** -(i % 2)) };
      const base = codeBits > 4 ? 120 : 0;
      codes = { ...codes, data: codes.data.map((code) => base + (code % 8)) };
      zero = { ...zero, data: zero.data.map((_, i) => base + 3 + (i % 2)) };
    }
    const packed = packedOf(codesOf(dims, [codes, scale, zero]));
    const bits = dim(dims, "x");
    // int4_matmul can keep its sums of short x; its bias is then wide as well.
    const isWide = product === "int4_matmul" && half !== undefined && bits === 0;
    const wide = product === "int4_matmul" ? { wide: isWide ? 1 : 0 } : {};
    if (isWide) bias = { data: bias.data, shape: bias.shape, dtype: "f32" };
    const xGrid = bits > 0 ? drawTokenGrid(draw, x, bits) : undefined;
    if (xGrid && !half) x = awayFromMiddles(draw, x, xGrid[0]);
    return {
      inputs: [
        x,
        { data: packed.codes, shape: packed.codesShape, dtype: "u8" },
        { data: packed.scale, shape: packed.gridShape, dtype: "f16" },
        { data: packed.zero, shape: packed.gridShape, dtype: "u8" },
        dim(dims, "bias") ? bias : undefined,
        xGrid?.[0],
        xGrid?.[1],
      ],
      params: { outputs: O, group: dim(dims, "group"), x_bits: bits, ...wide },
    };
  },
  reference: (call) => {
    const [x, bias] = [input(call, 0), call.inputs[4]];
    const [M, I] = x.shape as [number, number];
    const [O, group] = [param(call, "outputs"), param(call, "group")];
    const [codes, scale, zero] = [1, 2, 3].map((i) => input(call, i).data) as [
      Float64Array,
      Float64Array,
      Float64Array,
    ];
    const w = unpacked({ codes, scale, zero }, { O, I, group });
    const [xScale, xZero] = [call.inputs[5]?.data, call.inputs[6]?.data];
    const used =
      xScale && xZero
        ? fakeQuant(x.data, { scale: xScale, zero: xZero }, param(call, "x_bits"), {
            ...{ M, K: I, group: 0 },
          })
        : x.data;
    const sizes = { B: 1, M, N: O, K: I };
    const y = matmul(used, w, sizes, { alpha: 1, transA: false, transB: true });
    return [bias ? y.map((sum, i) => sum + (bias.data[i % O] ?? 0)) : y];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => {
    const [M, O, I] = [dim(dims, "M"), dim(dims, "O"), dim(dims, "I")];
    const groups = groupCount({ M: O, K: I, group: dim(dims, "group") });
    return (O * I * codeBits) / 8 + 3 * O * groups + M * (O + I) * size;
  },
  flops: (dims) => 2 * dim(dims, "M") * dim(dims, "O") * dim(dims, "I"),
  bound: "memory",
});

/** Both cases. */
export function packedCases(order: Order): readonly OpCase[] {
  return [packCase(order), productCase(order)];
}
