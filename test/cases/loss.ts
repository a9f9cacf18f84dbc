// Cases of mse, kl_div and their gradients, sq_diff, cross_entropy, gather_rows, channel_stats, all_finite.
import { DTYPE_BYTES, DTYPES, type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import { roundTo, type Value } from "../helpers/value.ts";
import { cast } from "../reference/elementwise.ts";
import { differences } from "../reference/finite-differences.ts";
import * as reference from "../reference/loss.ts";
import { DIFFERENCES, type Dims, dim, EXACT, input, type OpCase, param, SUMMED } from "./case.ts";

const N_SETS: readonly Dims[] = [{ N: 1 }, { N: 13 }, { N: 5001 }, { N: 300000 }];
const N_REAL: readonly Dims[] = [{ N: 2048 * 512 }, { N: 2048 * 4096 }];

/** The mean squared error against one target, or the sum of those against two. */
function bothErrors(y: Float64Array, t: Float64Array, t2: Float64Array | undefined): number {
  return reference.mse(y, t) + (t2 ? reference.mse(y, t2) : 0);
}

const mse: OpCase = {
  op: "mse",
  // two: with a second target.
  sets: [...N_SETS, { N: 13, two: 1 }, { N: 5001, two: 1 }],
  real: [...N_REAL, { N: 2048 * 4096, two: 1 }],
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    const [y, t] = [draw.normal(shape), draw.normal(shape)];
    return { inputs: [y, t, dims["two"] ? draw.normal(shape) : undefined], params: {} };
  },
  reference: (call) => [
    Float64Array.of(bothErrors(input(call, 0).data, input(call, 1).data, call.inputs[2]?.data)),
  ],
  // Summed in float64 whatever the type: only the result is rounded.
  tolerance: { f32: { rtol: 2e-7, atol: 0 }, f64: { rtol: 1e-13, atol: 0 } },
  bytes: (dims, size) => (2 + (dims["two"] ?? 0)) * dim(dims, "N") * size,
  flops: (dims) => 3 * dim(dims, "N"),
  bound: "memory",
};

const mseGrad: OpCase = {
  op: "mse_grad",
  gradient: { forward: "mse", kind: "smooth" },
  sets: [{ N: 1 }, { N: 13 }, { N: 257 }, { N: 29, two: 1 }],
  real: mse.real,
  make: (draw, dims) => {
    const [y, t, t2] = mse.make(draw, dims).inputs;
    return { inputs: [y, t, draw.normal([1]), t2], params: {} };
  },
  reference: (call) => {
    const [y, t, g] = [input(call, 0).data, input(call, 1).data, input(call, 2).data];
    const t2 = call.inputs[3]?.data;
    const forward = ([ys]: readonly Float64Array[]) => [
      Float64Array.of(bothErrors(ys ?? y, t, t2)),
    ];
    return [differences(forward, [y], 0, [g])];
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => (3 + (dims["two"] ?? 0)) * dim(dims, "N") * size,
  flops: (dims) => 2 * dim(dims, "N"),
  bound: "memory",
};

const klDiv: OpCase = {
  op: "kl_div",
  // far 0: a student that is almost its teacher, whose divergence is small beside its terms.
  sets: [
    { M: 1, V: 1, far: 1 },
    { M: 3, V: 7, far: 1 },
    { M: 9, V: 1001, far: 1 },
    { M: 5, V: 3000, far: 0 },
  ],
  real: [
    { M: 2048, V: 8192, far: 1 },
    { M: 512, V: 32000, far: 1 },
  ],
  make: (draw, dims) => {
    const shape = [dim(dims, "M"), dim(dims, "V")];
    const targets = draw.normal(shape, 4);
    const error = draw.normal(shape, dim(dims, "far") ? 3 : 0.05).data;
    const logits = draw.value(
      targets.data.map((value, i) => value + (error[i] ?? 0)),
      shape,
    );
    return { inputs: [logits, targets], params: {} };
  },
  reference: (call) => {
    const { data, shape } = input(call, 0);
    return [Float64Array.of(reference.klDivergence(data, input(call, 1).data, shape[1] ?? 0))];
  },
  tolerance: { f32: { rtol: 2e-5, atol: 3e-7 }, f64: { rtol: 1e-11, atol: 1e-14 } },
  bytes: (dims, size) => 2 * dim(dims, "M") * dim(dims, "V") * size,
  flops: (dims) => 48 * dim(dims, "M") * dim(dims, "V"),
  bound: "memory",
};

const klDivGrad: OpCase = {
  op: "kl_div_grad",
  gradient: { forward: "kl_div", kind: "smooth" },
  sets: [
    { M: 1, V: 1, far: 1 },
    { M: 3, V: 7, far: 1 },
    { M: 2, V: 131, far: 1 },
    { M: 2, V: 60, far: 0 },
  ],
  real: klDiv.real,
  make: (draw, dims) => {
    const forward = klDiv.make(draw, dims);
    return { inputs: [...forward.inputs, draw.normal([1])], params: {} };
  },
  reference: (call) => {
    const [x, t, g] = [input(call, 0), input(call, 1).data, input(call, 2).data];
    const forward = ([xs]: readonly Float64Array[]) => [
      Float64Array.of(reference.klDivergence(xs ?? x.data, t, x.shape[1] ?? 0)),
    ];
    return [differences(forward, [x.data], 0, [g])];
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 3 * dim(dims, "M") * dim(dims, "V") * size,
  flops: (dims) => 47 * dim(dims, "M") * dim(dims, "V"),
  bound: "memory",
};

const sqDiff: OpCase = {
  op: "sq_diff",
  sets: [...N_SETS.map(({ N = 1 }) => ({ N, b: 1 })), { N: 777, b: 0 }],
  real: N_REAL.map(({ N = 1 }) => ({ N, b: 1 })),
  make: (draw, dims) => {
    const shape = [dim(dims, "N")];
    const a = draw.normal(shape);
    return { inputs: [a, dim(dims, "b") ? draw.normal(shape) : undefined], params: {} };
  },
  reference: (call) => [
    Float64Array.of(reference.squaredDifference(input(call, 0).data, call.inputs[1]?.data)),
  ],
  tolerance: { f32: { rtol: 2e-7, atol: 0 }, f64: { rtol: 1e-13, atol: 0 } },
  bytes: (dims, size) => (1 + dim(dims, "b")) * dim(dims, "N") * size,
  flops: (dims) => 3 * dim(dims, "N"),
  bound: "memory",
};

const crossEntropy: OpCase = {
  op: "cross_entropy",
  sets: [
    { M: 1, V: 1 },
    { M: 3, V: 7 },
    { M: 9, V: 1001 },
  ],
  real: [
    { M: 2048, V: 8192 },
    { M: 512, V: 32000 },
  ],
  make: (draw, dims) => {
    const [M, V] = [dim(dims, "M"), dim(dims, "V")];
    return { inputs: [draw.normal([M, V], 5), draw.integers([M], V, "i32")], params: {} };
  },
  reference: (call) => {
    const logits = input(call, 0);
    return [reference.crossEntropy(logits.data, input(call, 1).data, logits.shape[1] ?? 0)];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => dim(dims, "M") * dim(dims, "V") * size,
  flops: (dims) => 22 * dim(dims, "M") * dim(dims, "V"),
  bound: "memory",
};

const TABLES: readonly (readonly [DType, DType])[] = [
  ["f64", "f64"],
  ["f32", "f32"],
  ["bf16", "f32"],
  ["f16", "f32"],
  ["bf16", "f64"],
];

function dtypeAt(code: number): DType {
  return DTYPES[code] ?? "f32";
}

const gatherRows: OpCase = {
  op: "gather_rows",
  dtypes: ["f32"],
  sets: TABLES.map(([from, to], i) => ({
    V: 11,
    C: 1 + 7 * i,
    M: 1 + 3 * i,
    from: dtypeCode(from),
    to: dtypeCode(to),
  })),
  real: [
    { V: 8192, C: 512, M: 2048, from: dtypeCode("f32"), to: dtypeCode("f32") },
    { V: 8192, C: 512, M: 2048, from: dtypeCode("bf16"), to: dtypeCode("f32") },
  ],
  make: (draw, dims) => {
    const [V, C, dtype] = [dim(dims, "V"), dim(dims, "C"), dtypeAt(dim(dims, "from"))];
    const data = draw.normal([V, C]).data.map((value) => roundTo(value, dtype));
    const table: Value = { data, shape: [V, C], dtype };
    const ids = draw.integers([dim(dims, "M")], V, "i32");
    return { inputs: [table, ids], params: { dtype: dim(dims, "to") } };
  },
  reference: (call) => {
    const table = input(call, 0);
    const rows = reference.gatherRows(table.data, input(call, 1).data, table.shape[1] ?? 0);
    return [cast(rows, dtypeAt(param(call, "dtype")))];
  },
  tolerance: EXACT,
  bytes: (dims) =>
    dim(dims, "M") *
    dim(dims, "C") *
    (DTYPE_BYTES[dtypeAt(dim(dims, "from"))] + DTYPE_BYTES[dtypeAt(dim(dims, "to"))]),
  flops: () => 0,
  bound: "memory",
};

const channelStats: OpCase = {
  op: "channel_stats",
  sets: [
    { M: 1, C: 1 },
    { M: 7, C: 3 },
    { M: 65, C: 33 },
    { M: 700, C: 5 },
  ],
  real: [
    { M: 2048, C: 512 },
    { M: 2048, C: 4096 },
  ],
  make: (draw, dims) => ({
    inputs: [draw.normal([dim(dims, "M"), dim(dims, "C")], 1, 0.5)],
    params: {},
  }),
  reference: (call) => reference.channelStats(input(call, 0).data, input(call, 0).shape[1] ?? 0),
  tolerance: EXACT,
  bytes: (dims, size) => dim(dims, "M") * dim(dims, "C") * size,
  flops: (dims) => 3 * dim(dims, "M") * dim(dims, "C"),
  bound: "memory",
};

const allFinite: OpCase = {
  op: "all_finite",
  short: true,
  // bad: 0 none, 1 a NaN, 2 an infinity, at the last place.
  sets: [
    { N: 1, bad: 0 },
    { N: 1, bad: 1 },
    { N: 999, bad: 0 },
    { N: 999, bad: 1 },
    { N: 50000, bad: 2 },
    { N: 12, bad: 0, groups: 3 },
    { N: 12, bad: 2, groups: 3 },
    { N: 130, bad: 0, groups: 90 },
    { N: 130, bad: 1, groups: 90 },
  ],
  real: [...N_REAL.map(({ N = 1 }) => ({ N, bad: 0 })), { N: 8192, bad: 0, groups: 20 }],
  repeatFrom: 0,
  make: (draw, dims) => {
    const [N, groups, bad] = [dim(dims, "N"), dims["groups"] ?? 1, dim(dims, "bad")];
    const inputs = Array.from({ length: groups }, (_, group) => {
      const data = draw.normal([N + 3 * group]).data.slice();
      const isBad = bad > 0 && group === Math.floor((2 * groups) / 3);
      if (isBad) data[data.length - 1] = bad === 1 ? Number.NaN : Number.NEGATIVE_INFINITY;
      return draw.stored(draw.value(data, [data.length]));
    });
    return { inputs, params: {} };
  },
  reference: ({ inputs }) => {
    const allFinite = inputs.every((x) => x?.data.every((value) => Number.isFinite(value)));
    return [Float64Array.of(allFinite ? 1 : 0)];
  },
  tolerance: EXACT,
  bytes: (dims, size) => dim(dims, "N") * (dims["groups"] ?? 1) * size,
  flops: () => 0,
  bound: "memory",
};

export const CASES: readonly OpCase[] = [
  mse,
  mseGrad,
  klDiv,
  klDivGrad,
  sqDiff,
  crossEntropy,
  gatherRows,
  channelStats,
  allFinite,
];
