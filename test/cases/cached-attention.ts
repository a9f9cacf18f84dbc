// Case of cached_attention: attention of new tokens whose predecessors lie in caches.
import { dtypeCode } from "../../lib/tensor/dtype.ts";
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { roundTo } from "../helpers/value.ts";
import { attention, onHeadGrid, rope } from "../reference/block.ts";
import type { Grid } from "../reference/quantize.ts";
import { type Call, type Dims, dim, input, type OpCase, param } from "./case.ts";
import { drawGrid, TOKEN_FLOOR } from "./quantize.ts";

/**
 * S slots of P places; M tokens, of the slots in turn, behind `past` others in each. grids: none (0),
 * of k and v (1), of all three (2); codes 1: the caches hold codes, and the grids' scale and zero.
 * joined 1: q, k and v side by side; turn 1: q and k are turned; apart 1: as the op has it.
 */
const SETS: readonly Dims[] = [
  { S: 1, P: 1, M: 1, past: 0, heads: 1, kv: 1, D: 1, grids: 0, codes: 0 },
  { S: 3, P: 9, M: 3, past: 8, heads: 4, kv: 2, D: 6, grids: 0, codes: 0 },
  { S: 2, P: 40, M: 17, past: 5, heads: 6, kv: 2, D: 16, grids: 2, codes: 0 },
  { S: 1, P: 50, M: 50, past: 0, heads: 2, kv: 2, D: 64, grids: 1, codes: 0 },
  { S: 1, P: 300, M: 2, past: 290, heads: 8, kv: 1, D: 32, grids: 0, codes: 0 },
  { S: 3, P: 9, M: 3, past: 8, heads: 4, kv: 2, D: 5, grids: 2, codes: 1 },
  { S: 2, P: 70, M: 9, past: 60, heads: 4, kv: 4, D: 64, grids: 1, codes: 1 },
  { S: 1, P: 130, M: 1, past: 129, heads: 4, kv: 2, D: 128, grids: 2, codes: 1 },
  { S: 1, P: 130, M: 1, past: 129, heads: 4, kv: 4, D: 128, joined: 1, turn: 1, apart: 1 },
  { S: 3, P: 90, M: 3, past: 80, heads: 4, kv: 1, D: 64, joined: 1, turn: 1, apart: 1 },
  { S: 2, P: 40, M: 12, past: 21, heads: 4, kv: 2, D: 32, joined: 1, turn: 1 },
  { S: 4, P: 9, M: 3, past: 0, heads: 2, kv: 1, D: 6, joined: 1, apart: 1 },
  { S: 1, P: 20, M: 5, past: 7, heads: 2, kv: 2, D: 10, grids: 0, codes: 0, turn: 1 },
];

const BITS = 4;
/** Positions of the inputs behind those of attention. */
const [KEYS, VALUES, KEY_GRID, VALUE_GRID, SLOTS, POSITIONS, COS, SIN] = [
  9, 10, 11, 12, 13, 14, 15, 16,
];

/** The same call with q, k and v apart, turned if they are to be. */
function apart(call: Call): Call {
  const [heads, kv] = [param(call, "heads"), param(call, "kv_heads")];
  const [cos, sin] = [call.inputs[COS], call.inputs[SIN]];
  const first = input(call, 0);
  const [M, width] = first.shape as [number, number];
  const isJoined = !call.inputs[1];
  const D = isJoined ? width / (heads + 2 * kv) : width / heads;
  const from = [0, heads, heads + kv];
  const parts = [heads, kv, kv].map((count, side): Value => {
    const own = count * D;
    const at = (from[side] as number) * D;
    const part = isJoined
      ? Float64Array.from(
          { length: M * own },
          (_, i) => first.data[Math.floor(i / own) * width + at + (i % own)] as number,
        )
      : Float64Array.from(input(call, side).data);
    const turns = side < 2 && cos && sin;
    const sizes = { B: 1, T: M, heads: count, D };
    const data = turns ? rope(part, cos.data, sin.data, sizes, false) : part;
    return { data, shape: [M, own] };
  });
  return { ...call, inputs: [...parts, ...call.inputs.slice(3)] };
}

function gridOf(draw: Draw, x: Value, group: number): readonly [Value, Value] {
  const [M, K] = x.shape as [number, number];
  const options = {
    M,
    K,
    group,
    bits: BITS,
    symmetric: false,
    floor: TOKEN_FLOOR,
    roundF16: false,
  };
  return drawGrid(draw, x, undefined, options);
}

/** What the caches hold after the tokens were written, and, as numbers, in float64. */
function written(call: Call, side: 0 | 1) {
  const cache = input(call, KEYS + side);
  const [, capacity, width] = cache.shape as [number, number, number];
  const x = input(call, 1 + side);
  const kvHeads = param(call, "kv_heads");
  const D = (x.shape[1] as number) / kvHeads;
  const [scale, zero] = [call.inputs[5 + 2 * side]?.data, call.inputs[6 + 2 * side]?.data];
  const grid: Grid | undefined = scale && zero && { scale, zero };
  const values = onHeadGrid(x.data, grid, BITS, { heads: kvHeads, D });
  const bytes = cache.data.slice();
  const grids = call.inputs[KEY_GRID + side]?.data.slice();
  for (let m = 0; m < (x.shape[0] as number); m++) {
    const place =
      (input(call, SLOTS).data[m] as number) * capacity +
      (input(call, POSITIONS).data[m] as number);
    if (!grids) {
      for (let i = 0; i < width; i++) {
        const value = values[m * width + i] as number;
        bytes[place * width + i] = cache.dtype ? roundTo(value, cache.dtype) : value;
      }
      continue;
    }
    for (let h = 0; h < kvHeads; h++) {
      const at = m * kvHeads + h;
      const [s, z] = [scale?.[at] as number, zero?.[at] as number];
      grids.set([s, z], 2 * (place * kvHeads + h));
      for (let b = 0; b < width / kvHeads; b++) {
        const code = (d: number): number =>
          d < D ? Math.round((values[at * D + d] as number) / s + z) : 0;
        bytes[place * width + (h * width) / kvHeads + b] = code(2 * b) + 16 * code(2 * b + 1);
      }
    }
  }
  return { bytes, grids, capacity, kvHeads, D, width };
}

/** The numbers of a slot's first places, [count, Hkv D]. */
function numbers(cache: ReturnType<typeof written>, slot: number, count: number): Float64Array {
  const { bytes, grids, capacity, kvHeads, D, width } = cache;
  const perHead = width / kvHeads;
  return Float64Array.from({ length: count * kvHeads * D }, (_, i) => {
    const [place, h, d] = [
      slot * capacity + Math.floor(i / (kvHeads * D)),
      Math.floor(i / D) % kvHeads,
      i % D,
    ];
    if (!grids) return bytes[place * width + h * D + d] as number;
    const byte = bytes[place * width + h * perHead + Math.floor(d / 2)] as number;
    const code = d % 2 === 0 ? byte % 16 : Math.floor(byte / 16);
    const at = 2 * (place * kvHeads + h);
    return (code - (grids[at + 1] as number)) * (grids[at] as number);
  });
}

const cachedAttention: OpCase = {
  op: "cached_attention",
  short: true,
  sets: SETS,
  real: [
    { S: 1, P: 2048, M: 1, past: 2047, heads: 32, kv: 8, D: 128, grids: 0, codes: 0 },
    { S: 1, P: 513, M: 1, past: 512, heads: 32, kv: 32, D: 128, joined: 1, turn: 1, apart: 1 },
    { S: 8, P: 1024, M: 8, past: 1000, heads: 32, kv: 8, D: 128, grids: 0, codes: 0 },
    { S: 8, P: 1024, M: 8, past: 1000, heads: 32, kv: 8, D: 128, grids: 2, codes: 1 },
    { S: 1, P: 512, M: 256, past: 256, heads: 8, kv: 4, D: 32, grids: 2, codes: 1 },
  ],
  make: (draw, dims) => {
    const [S, P, M] = [dim(dims, "S"), dim(dims, "P"), dim(dims, "M")];
    const [heads, kv, D] = [dim(dims, "heads"), dim(dims, "kv"), dim(dims, "D")];
    const isCodes = dims["codes"] === 1;
    const grid = dims["grids"] ?? 0;
    const isJoined = dims["joined"] === 1;
    const q = draw.normal([M, (isJoined ? heads + 2 * kv : heads) * D]);
    const [k, v] = [draw.normal([M, kv * D]), draw.normal([M, kv * D])];
    const angles = Array.from({ length: (M * D) / 2 }, (_, i) => 0.37 * i + 1);
    const table = (f: (angle: number) => number): Value | undefined =>
      dims["turn"] === 1 ? draw.value(angles.map(f), [M, D / 2]) : undefined;
    const none = [undefined, undefined] as const;
    const cache = (): Value =>
      isCodes
        ? draw.integers([S, P, kv * Math.ceil(D / 2)], 256, "u8")
        : draw.stored(draw.normal([S, P, kv * D]));
    const grids = (): Value | undefined => {
      if (!isCodes) return undefined;
      const scale = draw.uniform([S * P * kv], 0.1, 0.4).data;
      const zero = draw.integers([S * P * kv], 16, "u8").data;
      const both = Float64Array.from({ length: 2 * scale.length }, (_, i) =>
        i % 2 === 0 ? (scale[i / 2] as number) : (zero[(i - 1) / 2] as number),
      );
      return draw.value(both, [S, P, kv, 2]);
    };
    const each = (f: (m: number) => number): Value => ({
      data: Float64Array.from({ length: M }, (_, m) => f(m)),
      shape: [M],
      dtype: "i32",
    });
    return {
      inputs: [
        q,
        ...(isJoined ? none : [k, v]),
        ...(grid === 2 ? gridOf(draw, q, D) : none),
        ...(grid ? gridOf(draw, k, D) : none),
        ...(grid ? gridOf(draw, v, D) : none),
        cache(),
        cache(),
        grids(),
        grids(),
        each((m) => m % S),
        each((m) => dim(dims, "past") + Math.floor(m / S)),
        table(Math.cos),
        table(Math.sin),
      ],
      params: {
        scale: 1 / Math.sqrt(D),
        heads,
        kv_heads: kv,
        bits: grid ? BITS : 16,
        apart: dims["apart"] ?? 0,
        round: isJoined && draw.short ? dtypeCode(draw.short) : 0,
      },
    };
  },
  reference: (given) => {
    const call = apart(given);
    const [heads, kvHeads] = [param(call, "heads"), param(call, "kv_heads")];
    const [M, wide] = input(call, 0).shape as [number, number];
    const D = wide / heads;
    const grid = { scale: call.inputs[3]?.data, zero: call.inputs[4]?.data };
    const q = onHeadGrid(
      input(call, 0).data,
      grid.scale && grid.zero ? { scale: grid.scale, zero: grid.zero } : undefined,
      BITS,
      { heads, D },
    );
    const [keys, values] = [written(call, 0), written(call, 1)];
    const o = new Float64Array(M * wide);
    for (let m = 0; m < M; m++) {
      const slot = input(call, SLOTS).data[m] as number;
      const T = (input(call, POSITIONS).data[m] as number) + 1;
      // The token is the last of its slot's: the attention of all, of which its row is taken.
      const queries = new Float64Array(T * wide);
      queries.set(q.subarray(m * wide, (m + 1) * wide), (T - 1) * wide);
      const sizes = { B: 1, T, heads, kvHeads, D, scale: param(call, "scale") };
      const all = attention(queries, numbers(keys, slot, T), numbers(values, slot, T), sizes).o;
      o.set(all.subarray((T - 1) * wide), m * wide);
    }
    const grids = [keys.grids, values.grids].filter((x) => x !== undefined);
    return [o, keys.bytes, values.bytes, ...grids];
  },
  writes: [KEYS, VALUES, KEY_GRID, VALUE_GRID],
  tolerance: { f32: { rtol: 2e-5, atol: 1e-5 }, f64: { rtol: 1e-11, atol: 1e-12 } },
  bytes: (dims, size) => {
    const perToken = dim(dims, "kv") * dim(dims, "D") * (dims["codes"] ? 0.5 : size);
    return dim(dims, "S") * 2 * perToken * (dim(dims, "past") + dim(dims, "M") / dim(dims, "S"));
  },
  flops: (dims) =>
    4 * dim(dims, "M") * dim(dims, "heads") * dim(dims, "D") * (dim(dims, "past") + 1),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [cachedAttention];
