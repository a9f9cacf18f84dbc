// Case of fake_quant_grad: the gradient of learned clipping, against the written rule.
import { sizeOf, type Value } from "../helpers/value.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { type Dims, dim, input, type OpCase, param } from "./case.ts";
import {
  drawClip,
  drawFactors,
  drawGrid,
  drawOffset,
  FACTOR_SETS,
  gridOptions,
  OFFSET_REAL,
  OFFSET_SETS,
  PUBLISHED_SETS,
  scaled,
} from "./quantize.ts";

/** Data that random numbers do not give; the number is the set's `data`. */
const SPECIAL: readonly ((i: number, K: number) => number)[] = [
  // 1: all zero; 2: constant positive; 3: constant negative: the floor, and extremes that tie.
  () => 0,
  () => 0.75,
  () => -1.5,
  // 4: positive only; 5: negative only: the other extreme is the zero that belongs to every grid.
  (i) => 0.1 + ((i * 37) % 11) / 7,
  (i) => -0.1 - ((i * 37) % 11) / 7,
  // 6: far below the floor; 7: twice the largest and the smallest value in each row.
  (i) => 1e-9 * Math.cos(i),
  (i, K) => (i % K < 2 ? 2 : i % K < 4 ? -1.25 : Math.sin(3 * i) / 2),
];

const SPECIAL_SETS: readonly Dims[] = SPECIAL.flatMap((_, i) =>
  [0, 1].flatMap((symmetric) =>
    [0, 1, 2].map((clip) => ({
      M: 3,
      K: 11,
      group: clip === 2 ? 4 : 0,
      bits: 3,
      symmetric,
      clip,
      data: i + 1,
    })),
  ),
);

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "K");

/** From the gradient of r x c those of x, r and c: each gathers it times the other two. */
export function factorGradients(
  g: Float64Array,
  x: Value,
  r: Value | undefined,
  c: Value | undefined,
): { gw: Float64Array; gr: Float64Array; gc: Float64Array } {
  const [M, K] = x.shape as [number, number];
  const [gw, gr, gc] = [g.slice(), new Float64Array(r ? M : 0), new Float64Array(c ? K : 0)];
  for (let i = 0; i < M * K; i++) {
    const [m, k] = [Math.floor(i / K), i % K];
    const [rm, ck] = [r?.data[m] ?? 1, c?.data[k] ?? 1];
    const product = (g[i] as number) * (x.data[i] as number);
    if (r) gr[m] = (gr[m] as number) + product * ck;
    if (c) gc[k] = (gc[k] as number) + product * rm;
    gw[i] = (g[i] as number) * rm * ck;
  }
  return { gw, gr, gc };
}

const fakeQuantGrad: OpCase = {
  op: "fake_quant_grad",
  short: true,
  gradient: { forward: "fake_quant", kind: "rule" },
  // x 0: x is a constant and wants no gradient, as while rounding is learned.
  sets: [
    ...OFFSET_SETS,
    ...OFFSET_SETS.map((dims) => ({ ...dims, x: 0 })),
    ...PUBLISHED_SETS,
    ...PUBLISHED_SETS.map((dims) => ({ ...dims, v: 1, x: 0 })),
    ...FACTOR_SETS,
    ...FACTOR_SETS.map((dims) => ({ ...dims, x: 0 })),
    ...FACTOR_SETS.slice(2, 4).map((dims) => ({ ...dims, v: 1, x: 0 })),
    ...SPECIAL_SETS,
    ...SPECIAL_SETS.map((dims) => ({ ...dims, rule: 1 })),
    ...SPECIAL_SETS.filter(({ clip }) => clip === 2).map((dims) => ({ ...dims, v: 1, x: 0 })),
  ],
  real: OFFSET_REAL.map((dims) => (dims["v"] === 1 ? { ...dims, x: 0 } : dims)),
  make: (draw, dims) => {
    const options = gridOptions(dims);
    const shape = [options.M, options.K];
    const special = SPECIAL[(dims["data"] ?? 0) - 1];
    const x = draw.stored(
      special
        ? draw.value(
            Array.from({ length: sizeOf(shape) }, (_, i) => special(i, options.K)),
            shape,
          )
        : draw.normal(shape),
    );
    const clip = drawClip(draw, dims);
    const factors = drawFactors(draw, dims, x);
    return {
      inputs: [
        x,
        ...drawGrid(draw, scaled(x, ...factors), clip, options),
        draw.gradient(draw.normal(shape)),
        clip,
        drawOffset(draw, dims, x),
        ...factors,
      ],
      params: {
        bits: options.bits,
        group: options.group,
        symmetric: dim(dims, "symmetric"),
        floor: options.floor,
        need_gx: dims["x"] ?? 1,
        rule: dims["rule"] ?? 0,
      },
    };
  },
  reference: (call) => {
    const [x, g, clip] = [input(call, 0), input(call, 3), call.inputs[4]];
    const [M, K] = x.shape as [number, number];
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
    const offset = call.inputs[5]?.data;
    const [r, c] = [call.inputs[6], call.inputs[7]];
    const used = scaled(x, r, c).data;
    const { gx, gclip, gv } = fakeQuantGradient(used, clip?.data, g.data, options, offset);
    const { gw, gr, gc } = factorGradients(gx, x, r, c);
    return [param(call, "need_gx") === 1 ? gw : new Float64Array(0), gclip, gv, gr, gc];
  },
  tolerance: { f32: { rtol: 1e-4, atol: 5e-5 }, f64: { rtol: 1e-10, atol: 1e-11 } },
  bytes: (dims, size) => (2 + (dims["x"] ?? 1) + 2 * (dims["v"] ?? 0)) * elements(dims) * size,
  flops: (dims) => 14 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [fakeQuantGrad];
