// The op cases at every SIMD level that the processor has, each in a process of its own, since the
// addon reads AQ_SIMD once. Every level must meet the reference; and all but the kernels that use
// fused multiply-adds must give the same bits at every level.
import { execFileSync } from "node:child_process";
import { deserialize, serialize } from "node:v8";
import { describe, expect, it } from "vitest";
import { DTYPES, type DType, dtypeCode, type TypedArray } from "../lib/tensor/dtype.ts";
import { packageRoot } from "../lib/util/package.ts";
import { type Call, type Dims, label, type OpCase } from "./cases/case.ts";
import { CASES } from "./cases/index.ts";
import { difference } from "./helpers/compare.ts";
import { makeCall, ofResult, variants, writtenInputs } from "./helpers/run-op.ts";
import { decode, encode, type FloatType, type Value } from "./helpers/value.ts";

/** Ops whose inner loops are the fused multiply-adds of the product kernels. */
const FUSED = new Set([
  "head_matmul",
  "head_matmul_grad",
  "lu_inverse",
  "matmul",
  "fake_quant_gemm",
  "gptq",
  "cached_attention",
  "int4_matmul",
  "int8_matmul",
  "fp4_matmul",
  "attention",
  "attention_grad",
  "attention_operand",
  "attention_operand_grad",
]);

// Plain JavaScript, for a process that cannot load TypeScript: reads calls, answers results.
const CHILD = `
const { deserialize, serialize } = require("node:v8");
const root = process.argv[1];
const core = require(root + "/node_modules/node-gyp-build")(root);
const ARRAYS = [Float64Array, Float32Array, Uint16Array, Uint16Array, Int32Array, Int8Array, Uint8Array];
const ops = core.ops();
const tensor = (value) => {
  if (!value) return undefined;
  const handle = core.empty("cpu", value.dtype, value.shape);
  handle.write(value.data);
  return handle;
};
const read = (handle) => {
  const size = handle.shape.reduce((product, n) => product * n, 1);
  return { dtype: handle.dtype, data: handle.read(new ARRAYS[handle.dtype](size)) };
};
const run = ({ op, inputs, params, outs, writes }) => {
  const index = ops.findIndex(({ name }) => name === op);
  const handles = inputs.map(tensor);
  const values = ops[index].params.map(({ name }) => params[name]);
  const results = core.invoke(index, handles, values, outs && outs.map(tensor));
  return [...results, ...writes.map((i) => handles[i])].map(read);
};
const chunks = [];
process.stdin.on("data", (chunk) => chunks.push(chunk));
process.stdin.on("end", () => {
  const results = deserialize(Buffer.concat(chunks)).map(run);
  process.stdout.write(serialize({ detail: core.deviceInfo("cpu").detail, results }));
});
`;

interface Result {
  readonly dtype: number;
  readonly data: TypedArray;
}

interface Answer {
  readonly detail: string;
  readonly results: readonly (readonly Result[])[];
}

interface Item {
  readonly op: OpCase;
  readonly dims: Dims;
  readonly dtype: FloatType;
  readonly call: Call;
}

const items: readonly Item[] = CASES.flatMap((op) =>
  variants(op).flatMap(({ dtype, short }) =>
    op.sets.map((dims) => ({ op, dims, dtype, call: makeCall(op, dims, dtype, short) })),
  ),
);

function encoded({ op, dtype, call }: Item) {
  const tensor = (value: Value | undefined) => {
    if (!value) return undefined;
    const type = value.dtype ?? dtype;
    return { dtype: dtypeCode(type), shape: value.shape, data: encode(value.data, type) };
  };
  return {
    op: op.op,
    inputs: call.inputs.map(tensor),
    params: call.params,
    outs: call.outs?.map(tensor),
    writes: writtenInputs(op, call),
  };
}

const message = serialize(items.map(encoded));

/** A command that starts an arm64 Node.js on another processor (npm run test:arm64), for neon. */
const EMULATED = process.env["AQ_EMULATED_NODE"]?.split(" ");

/** Results of all items at a level, or undefined where the processor does not have it. */
function runAt(level: string): Answer | undefined {
  const [program = "", ...args] = (level === "neon" && EMULATED) || [process.execPath];
  // What lies in build/ is for this processor; the emulated one takes its prebuilt addon.
  const prebuilt = program === process.execPath ? {} : { PREBUILDS_ONLY: "1" };
  try {
    const output = execFileSync(program, [...args, "-e", CHILD, packageRoot()], {
      env: { ...process.env, ...prebuilt, AQ_SIMD: level },
      input: message,
      maxBuffer: 2 ** 30,
      stdio: ["pipe", "pipe", "pipe"],
    });
    return deserialize(output) as Answer;
  } catch (error) {
    if (String(error).includes("which this processor does not have")) return undefined;
    throw error;
  }
}

const LEVELS = ["plain", "avx2", "avx512", "neon"] as const;
const answers = new Map(LEVELS.map((level) => [level, runAt(level)]));
const plain = answers.get("plain");
const expected = items.map(({ op, call }) => op.reference(call));

/** The bytes of an array, which may be a part of a larger buffer. */
function bytesOf({ buffer, byteOffset, byteLength }: TypedArray): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength);
}

describe.each(LEVELS)("the %s kernels", (level) => {
  const answer = answers.get(level);

  it.skipIf(!answer)("are the ones in use", () => {
    expect(answer?.detail).toContain(level);
  });
  if (!answer) return;

  it.each(CASES.map(({ op }) => op))("%s equals its reference", (name) => {
    for (const [i, { op, dims, dtype }] of items.entries()) {
      if (op.op !== name) continue;
      for (const [k, wanted] of (expected[i] ?? []).entries()) {
        const result = answer.results[i]?.[k];
        const type = DTYPES[result?.dtype ?? 0] as DType;
        const data = result ? decode(result.data, type) : [];
        const what = `${name} result ${k}, ${dtype}, ${label(dims)}`;
        expect(difference(what, data, wanted, ofResult(op.tolerance[dtype], type))).toBeUndefined();
      }
    }
  });

  it("give the bits of the plain ones, where nothing is fused", () => {
    const differing = items.filter(
      ({ op }, i) =>
        !FUSED.has(op.op) &&
        !answer.results[i]?.every((result, k) => {
          const other = plain?.results[i]?.[k];
          return other && bytesOf(result.data).equals(bytesOf(other.data));
        }),
    );
    expect(differing.map(({ op, dims, dtype }) => `${op.op} ${dtype} ${label(dims)}`)).toEqual([]);
  });
});
