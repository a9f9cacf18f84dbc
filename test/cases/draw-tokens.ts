// Cases of draw_tokens.
import type { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { drawTokens } from "../reference/draw-tokens.ts";
import { type Dims, dim, EXACT, input, type OpCase } from "./case.ts";

/** Temperature and place of each row; all at temperature 0 where `cold`. The same in every type. */
function draws(draw: Draw, M: number, isCold: boolean): Value {
  const temperatures = draw.uniform([M], 0.3, 2).data;
  const places = draw.uniform([M], 0, 1).data;
  const data = new Float64Array(2 * M);
  for (let row = 0; row < M; row++) {
    if (!isCold) data[2 * row] = Math.fround(temperatures[row] as number);
    data[2 * row + 1] = Math.fround(places[row] as number);
  }
  return { data, shape: [M, 2], dtype: "f64" };
}

/** A few logits that are no numbers, two equal ones that are the largest, and a row of nothing else. */
function damage(logits: Value, M: number, V: number): Value {
  const data = Float64Array.from(logits.data);
  for (let row = 0; row < M; row++) {
    data[row * V + (row % V)] = row % 2 === 0 ? Number.NaN : Number.NEGATIVE_INFINITY;
    if (V > 8) data[row * V + 5] = data[row * V + 7] = 30;
  }
  data.fill(Number.NaN, 0, V);
  return { ...logits, data };
}

const drawTokensCase: OpCase = {
  op: "draw_tokens",
  // bad: with what is no number; cold: at temperature 0.
  sets: [
    { M: 1, V: 1, bad: 0, cold: 0 },
    { M: 9, V: 7, bad: 0, cold: 0 },
    { M: 9, V: 7, bad: 1, cold: 1 },
    { M: 40, V: 33, bad: 0, cold: 1 },
    { M: 70, V: 256, bad: 0, cold: 0 },
    { M: 33, V: 1000, bad: 1, cold: 0 },
    { M: 50, V: 5003, bad: 0, cold: 0 },
  ],
  real: [
    { M: 1, V: 32000, bad: 0, cold: 0 },
    { M: 32, V: 8192, bad: 0, cold: 0 },
    { M: 128, V: 32000, bad: 0, cold: 0 },
  ],
  make: (draw, dims) => {
    const [M, V] = [dim(dims, "M"), dim(dims, "V")];
    const logits = draw.normal([M, V], 3);
    const inputs = [
      dim(dims, "bad") === 1 ? damage(logits, M, V) : logits,
      draws(draw, M, dim(dims, "cold") === 1),
    ];
    return { inputs, params: {} };
  },
  reference: (call) => {
    const { data, shape } = input(call, 0);
    return [drawTokens(data, input(call, 1).data, shape[1] ?? 0)];
  },
  tolerance: EXACT,
  bytes: (dims: Dims, size) => dim(dims, "M") * dim(dims, "V") * size,
  flops: (dims: Dims) => 24 * dim(dims, "M") * dim(dims, "V"),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [drawTokensCase];
