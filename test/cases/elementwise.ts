// Cases of fill, cast, add, axpy, mul and exp.
import { DTYPE_BYTES, DTYPES, type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import type { Draw } from "../helpers/random.ts";
import { roundTo } from "../helpers/value.ts";
import * as reference from "../reference/elementwise.ts";
import { type Call, CLOSE, type Dims, dim, EXACT, input, type OpCase, param } from "./case.ts";

const N_SETS: readonly Dims[] = [{ N: 1 }, { N: 7 }, { N: 1003 }, { N: 40001 }];
/** Activations [T, C] of llama-23m and of a 7B model. */
const N_REAL: readonly Dims[] = [{ N: 2048 * 512 }, { N: 2048 * 4096 }];

function dtypeAt(code: number): DType {
  const dtype = DTYPES[code];
  if (dtype === undefined) throw new Error(`no dtype has the number ${code}`);
  return dtype;
}

const fill: OpCase = {
  op: "fill",
  sets: N_SETS,
  real: N_REAL,
  make: (draw: Draw, dims: Dims): Call => ({
    inputs: [draw.normal([dim(dims, "N")])],
    params: { value: -1.25 },
  }),
  reference: (call) => [input(call, 0).data.map(() => param(call, "value"))],
  writes: [0],
  tolerance: EXACT,
  bytes: (dims, size) => dim(dims, "N") * size,
  flops: () => 0,
  bound: "memory",
};

/** Numbers that are exact in most formats, ties between neighbours, and values to be rounded. */
const CAST_VALUES = [
  0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3.5, 100, 127, 65504, 1e-3, -1e-3, 3.3, -2.6, 6e-8, 1e-5,
  1.00390625, 1.01171875, 2049, 2051, 0.1, 1e-7, 1234.567, -98.76,
];
const CAST_INTEGERS = [0, 1, 2, 3, 5, 17, 99, 100, 126, 127];

const PAIRS: readonly (readonly [DType, DType])[] = [
  ["f32", "f64"],
  ["f64", "f32"],
  ["f32", "bf16"],
  ["f32", "f16"],
  ["f64", "bf16"],
  ["f64", "f16"],
  ["bf16", "f32"],
  ["f16", "f32"],
  ["bf16", "f16"],
  ["f16", "bf16"],
  ["f16", "f64"],
  ["i32", "f32"],
  ["u8", "f32"],
  ["i8", "f64"],
  ["f32", "i32"],
  ["f32", "i8"],
  ["f64", "u8"],
  ["f32", "f32"],
  ["u8", "i32"],
];

const isInteger = (dtype: DType) => dtype === "i32" || dtype === "i8" || dtype === "u8";

const cast: OpCase = {
  op: "cast",
  dtypes: ["f32"],
  sets: PAIRS.map(([from, to]) => ({ from: dtypeCode(from), to: dtypeCode(to), N: 333 })),
  real: [
    { from: dtypeCode("f32"), to: dtypeCode("f32"), N: 2048 * 512 },
    { from: dtypeCode("f32"), to: dtypeCode("f32"), N: 2048 * 4096 },
    { from: dtypeCode("bf16"), to: dtypeCode("f32"), N: 2048 * 4096 },
    { from: dtypeCode("f32"), to: dtypeCode("bf16"), N: 2048 * 4096 },
    { from: dtypeCode("f16"), to: dtypeCode("f32"), N: 2048 * 4096 },
    { from: dtypeCode("f32"), to: dtypeCode("f16"), N: 2048 * 4096 },
  ],
  make: (draw, dims) => {
    const [from, to] = [dtypeAt(dim(dims, "from")), dtypeAt(dim(dims, "to"))];
    const integers = isInteger(from) || isInteger(to);
    const data = integers
      ? draw.integers([dim(dims, "N")], 128, "u8").data
      : draw.normal([dim(dims, "N")], 3).data;
    (integers ? CAST_INTEGERS : CAST_VALUES).forEach((value, i) => {
      data[i] = value;
    });
    if (!isInteger(from) && isInteger(to)) {
      [0.5, 1.5, 2.5, 99.5, 100.5, 3.49, 3.51].forEach((value, i) => {
        data[20 + i] = value;
      });
    }
    const values = data.map((value) => roundTo(value, from));
    return {
      inputs: [{ data: values, shape: [data.length], dtype: from }],
      params: { dtype: dim(dims, "to") },
    };
  },
  reference: (call) => [reference.cast(input(call, 0).data, dtypeAt(param(call, "dtype")))],
  tolerance: EXACT,
  bytes: (dims) =>
    dim(dims, "N") *
    (DTYPE_BYTES[dtypeAt(dim(dims, "from"))] + DTYPE_BYTES[dtypeAt(dim(dims, "to"))]),
  flops: () => 0,
  bound: "memory",
};

const add: OpCase = {
  op: "add",
  sets: N_SETS,
  real: N_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    return { inputs: [draw.normal(shape), draw.normal(shape)], params: { alpha: -0.75 } };
  },
  reference: (call) => [
    reference.add(input(call, 0).data, input(call, 1).data, param(call, "alpha")),
  ],
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * dim(dims, "N") * size,
  flops: (dims) => 2 * dim(dims, "N"),
  bound: "memory",
};

const axpy: OpCase = {
  op: "axpy",
  sets: N_SETS,
  real: N_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    return { inputs: [draw.normal(shape), draw.normal(shape)], params: { alpha: -0.75 } };
  },
  reference: (call) => [
    reference.axpy(input(call, 0).data, input(call, 1).data, param(call, "alpha")),
  ],
  writes: [0],
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * dim(dims, "N") * size,
  flops: (dims) => 2 * dim(dims, "N"),
  bound: "memory",
};

const mul: OpCase = {
  op: "mul",
  sets: N_SETS,
  real: N_REAL,
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    return { inputs: [draw.normal(shape), draw.normal(shape)], params: { alpha: 1.5 } };
  },
  reference: (call) => [
    reference.mul(input(call, 0).data, input(call, 1).data, param(call, "alpha")),
  ],
  tolerance: CLOSE,
  bytes: (dims, size) => 3 * dim(dims, "N") * size,
  flops: (dims) => 2 * dim(dims, "N"),
  bound: "memory",
};

const exp: OpCase = {
  op: "exp",
  sets: N_SETS,
  real: [{ N: 4096 }, ...N_REAL],
  make: (draw, dims) => ({
    inputs: [draw.normal([dim(dims, "N")], 4)],
    params: { scale: -1 },
  }),
  reference: (call) => [reference.exp(input(call, 0).data, param(call, "scale"))],
  tolerance: CLOSE,
  bytes: (dims, size) => 2 * dim(dims, "N") * size,
  flops: (dims) => 20 * dim(dims, "N"),
  bound: "memory",
};

export const CASES: readonly OpCase[] = [fill, cast, add, axpy, mul, exp];
