// Cases of norm_rounded and silu_mul_joined: what stands between the products of a decoding step.

import { dtypeCode } from "../../lib/tensor/dtype.ts";
import type { Draw } from "../helpers/random.ts";
import { layerNorm, rmsNorm, siluMul } from "../reference/block.ts";
import { type Dims, dim, input, type OpCase, param, SUMMED } from "./case.ts";

const EPS = 1e-5;

/** The type that the result is rounded to: none but in the variants that have a short one. */
const roundOf = ({ short }: Draw): number => (short ? dtypeCode(short) : 0);

const normRounded: OpCase = {
  op: "norm_rounded",
  short: true,
  sets: [
    { M: 1, C: 1, b: 0, centred: 0 },
    { M: 3, C: 7, b: 1, centred: 0 },
    { M: 5, C: 64, b: 0, centred: 0 },
    { M: 33, C: 20, b: 1, centred: 1 },
    { M: 2, C: 2052, b: 0, centred: 1 },
  ],
  real: [{ M: 1, C: 4096, b: 0, centred: 0 }],
  make: (draw, dims) => {
    const C = dim(dims, "C");
    const w = draw.normal([C], 0.2, 1);
    const b = dim(dims, "b") === 1 ? draw.normal([C]) : undefined;
    return {
      inputs: [draw.normal([dim(dims, "M"), C], 2, 0.5), w, b],
      params: { eps: EPS, centred: dim(dims, "centred"), round: roundOf(draw) },
    };
  },
  reference: (call) => {
    const [x, w] = [input(call, 0).data, input(call, 1).data];
    const b = call.inputs[2]?.data ?? new Float64Array(w.length);
    const isCentred = param(call, "centred") === 1;
    return [isCentred ? layerNorm(x, w, b, EPS).y : rmsNorm(x, w, EPS, b).y];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => 2 * dim(dims, "M") * dim(dims, "C") * size,
  flops: (dims) => 8 * dim(dims, "M") * dim(dims, "C"),
  bound: "memory",
};

const siluMulJoined: OpCase = {
  op: "silu_mul_joined",
  short: true,
  sets: [
    { M: 1, F: 1 },
    { M: 3, F: 7 },
    { M: 5, F: 64 },
  ],
  real: [{ M: 1, F: 11008 }],
  make: (draw, dims) => ({
    inputs: [draw.normal([dim(dims, "M"), 2 * dim(dims, "F")], 3)],
    params: { round: roundOf(draw) },
  }),
  reference: (call) => {
    const { data, shape } = input(call, 0);
    const width = shape[1] as number;
    const half = (part: number): Float64Array =>
      data.filter((_, i) => Math.floor((i % width) / (width / 2)) === part);
    return [siluMul(half(0), half(1))];
  },
  tolerance: SUMMED,
  bytes: (dims: Dims, size) => 3 * dim(dims, "M") * dim(dims, "F") * size,
  flops: (dims) => 5 * dim(dims, "M") * dim(dims, "F"),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [normRounded, siluMulJoined];
