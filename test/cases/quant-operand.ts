// Case of quant_operand: the grid of a matrix and the quantized matrix in one pass.
import { DTYPES, type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import * as reference from "../reference/quantize.ts";
import { CLOSE, type Dims, dim, input, type OpCase, param } from "./case.ts";
import {
  drawClip,
  drawFactors,
  drawOffset,
  FACTOR_SETS,
  gridOptions,
  OFFSET_SETS,
  PUBLISHED_SETS,
  scaled,
} from "./quantize.ts";

/** Whole rows of at most 7 bits, which give i8, also longer than a block and of any remainder. */
const WHOLE_SETS: readonly Dims[] = [
  ...[...OFFSET_SETS, ...FACTOR_SETS].filter(
    ({ group, bits = 8, rule }) => group === 0 && bits < 8 && rule !== 1,
  ),
  { M: 3, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 2, f: 3 },
  { M: 2, K: 11008, group: 0, bits: 4, symmetric: 0, clip: 2, v: 1 },
  { M: 2, K: 9001, group: 0, bits: 7, symmetric: 0, clip: 1 },
  { M: 2, K: 33000, group: 0, bits: 3, symmetric: 1, clip: 2, f: 2 },
];

/**
 * y: the type of the quantized matrix; 0 the float type under test, 1 the short one, 2 i8. values: beside
 * what is i8, where the grid is in f32.
 */
const SETS: readonly Dims[] = [
  ...WHOLE_SETS.map((dims) => ({ ...dims, y: 2 })),
  ...[...OFFSET_SETS, ...FACTOR_SETS, ...PUBLISHED_SETS].map((dims, i) => ({ ...dims, y: i % 2 })),
  { M: 5, K: 4096, group: 128, bits: 2, symmetric: 0, clip: 2, f: 1, y: 1 },
  { M: 3, K: 11008, group: 32, bits: 3, symmetric: 0, clip: 2, v: 1, y: 1 },
  { M: 2, K: 16384, group: 0, bits: 4, symmetric: 0, clip: 2, y: 1 },
  ...WHOLE_SETS.map((dims) => ({ ...dims, y: 2, values: 1 })),
];

const elements = (dims: Dims) => dim(dims, "M") * dim(dims, "K");

const quantOperand: OpCase = {
  op: "quant_operand",
  short: true,
  sets: SETS,
  real: [
    { M: 4096, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 2, f: 2, y: 2 },
    { M: 11008, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 2, f: 3, y: 2 },
    { M: 4096, K: 11008, group: 0, bits: 3, symmetric: 0, clip: 2, y: 1 },
    { M: 2048, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 1, y: 2 },
    { M: 4096, K: 4096, group: 0, bits: 4, symmetric: 0, clip: 2, y: 2, values: 1 },
    { M: 4096, K: 4096, group: 128, bits: 4, symmetric: 0, clip: 2, y: 1 },
  ],
  make: (draw, dims) => {
    const options = gridOptions(dims);
    const x = draw.stored(draw.normal([options.M, options.K]));
    const types: readonly DType[] = [draw.dtype, draw.short ?? draw.dtype, "i8"];
    return {
      inputs: [x, drawClip(draw, dims), drawOffset(draw, dims, x), ...drawFactors(draw, dims, x)],
      params: {
        bits: options.bits,
        group: options.group,
        symmetric: dim(dims, "symmetric"),
        rule: dims["rule"] ?? 0,
        floor: options.floor,
        dtype: dtypeCode(types[dim(dims, "y")] as DType),
        values: draw.dtype === "f32" ? (dims["values"] ?? 0) : 0,
      },
    };
  },
  reference: (call) => {
    const [M, K] = input(call, 0).shape as [number, number];
    const x = scaled(input(call, 0), call.inputs[3], call.inputs[4]);
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
    const grid = reference.quantGrid(x.data, call.inputs[1]?.data, options);
    const y = reference.fakeQuant(x.data, grid, options.bits, options, call.inputs[2]?.data);
    const values = param(call, "values") === 1 ? y.slice() : new Float64Array(0);
    if (DTYPES[param(call, "dtype")] === "i8") {
      for (let i = 0; i < y.length; i++) {
        y[i] = Math.round((y[i] as number) / (grid.scale[Math.floor(i / K)] as number));
      }
    }
    return [grid.scale, grid.zero, y, values];
  },
  tolerance: CLOSE,
  bytes: (dims, size) =>
    elements(dims) * (size + (dim(dims, "y") === 2 ? 1 : size) + 2 * (dims["values"] ?? 0)),
  flops: (dims) => 9 * elements(dims),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [quantOperand];
