// Ops that take the quantizer behind them in: the same bytes as one after the other, in each op and in a
// step. The CPU runs the same ops as a GPU, so that the path is tested here; a GPU sums in other orders.
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Var } from "../lib/autograd/graph.ts";
import { add } from "../lib/autograd/ops/add.ts";
import { fakeQuant } from "../lib/autograd/ops/fake-quant.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { rmsNorm } from "../lib/autograd/ops/rms-norm.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke, kernelCalls } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, type Tensor } from "../lib/tensor/tensor.ts";
import { distances, trainingGradients } from "./helpers/block-gradients.ts";
import { devices } from "./helpers/device.ts";
import { differences, drawn, NORMS, read } from "./helpers/joined-ops.ts";

const state = vi.hoisted(() => ({ precision: "f32" as "f32" | "bf16", waits: true }));
vi.mock("../lib/tensor/precision.ts", async (original) => ({
  ...(await original<object>()),
  precisionOf: () => state.precision,
}));
vi.mock("../lib/autograd/quantizable.ts", async (original) => {
  const own = await original<typeof import("../lib/autograd/quantizable.ts")>();
  const waitsForQuantizer: typeof own.waitsForQuantizer = (graph, x) =>
    state.waits && own.waitsForQuantizer(graph, x);
  return { ...own, waitsForQuantizer };
});

beforeEach(() => {
  state.precision = "f32";
  state.waits = true;
});

const CODES = { bits: 4, floor: 1e-6 };
const QUANTIZER = { ...CODES, group: 0, symmetric: 0, rule: 0 };

/** Rows of every way that a GPU takes them, by their length. */
const LENGTHS = [7, 100, 132, 512, 516, 1024, 4096, 4100, 11008, 14340];

/** Heads of every way that a GPU takes them. */
const HEADS = [
  { T: 5, heads: 4, kv: 2, D: 6 },
  { T: 33, heads: 5, kv: 1, D: 32 },
  { T: 20, heads: 3, kv: 3, D: 64 },
  { T: 9, heads: 4, kv: 2, D: 128 },
] as const;

const BY_NORM = NORMS.flatMap((norm) => LENGTHS.map((columns) => ({ ...norm, columns })));

/** quant_operand of rows of y, and fake_quant_grad of them. */
function quantizer(y: Tensor | undefined, clip: Tensor | undefined) {
  const whole = { ...QUANTIZER, dtype: dtypeCode("i8"), values: 0 };
  const inputs = [y, clip, undefined, undefined, undefined];
  const made = invoke("quant_operand", inputs, whole).slice(0, 3);
  const back = (g: Tensor | undefined) => {
    const given = [y, made[0], made[1], g, clip, undefined, undefined, undefined];
    return invoke("fake_quant_grad", given, { ...QUANTIZER, need_gx: 1 });
  };
  return { made, grid: made.slice(0, 2), back };
}

describe.each(devices())("on %s", (device) => {
  it.each(BY_NORM)("$op with its quantizer is the two ops, $columns columns", ({ op, ...norm }) => {
    scope(() => {
      const C = norm.columns;
      const make = drawn(9, C, device);
      const [x, w, b, clip, g] = [[9, C], [C], [C], [1], [9, C]].map(make);
      const [y, ...saved] = invoke(op, [x, w, b], { eps: 1e-5 });
      const { made, grid, back } = quantizer(y, clip);
      const joined = invoke(`${op}_operand`, [x, w, b, clip], { ...CODES, eps: 1e-5 });
      expect(read(joined)).toEqual(read([...saved, ...made]));

      const [gy, gclip] = back(g);
      const separate = invoke(`${op}_grad`, [x, w, ...saved, gy], norm.params);
      const inputs = [x, w, b, clip, ...saved, ...grid, g];
      const joinedBack = invoke(`${op}_operand_grad`, inputs, { ...CODES, need_gx: 1 });
      expect(differences(joinedBack, [...separate, gclip], device)).toEqual([]);
    });
  });

  it.each(LENGTHS)("silu_mul with its quantizer is the two ops, %d columns", (C) => {
    scope(() => {
      const make = drawn(9, C, device);
      const [gate, up, clip, g] = [[9, C], [9, C], [1], [9, C]].map(make);
      const [y] = invoke("silu_mul", [gate, up]);
      const { made, grid, back } = quantizer(y, clip);
      expect(read(invoke("silu_mul_operand", [gate, up, clip], CODES))).toEqual(read(made));

      const [gy, gclip] = back(g);
      for (const bf16 of [0, 1]) {
        const separate = invoke("silu_mul_grad", [gate, up, gy], { bf16 });
        const inputs = [gate, up, clip, ...grid, g];
        const joined = invoke("silu_mul_operand_grad", inputs, { ...CODES, bf16 });
        expect(differences(joined, [...separate, gclip], device)).toEqual([]);
      }
    });
  });

  it.each(LENGTHS)("relu with its quantizer is the two ops, %d columns", (C) => {
    scope(() => {
      const make = drawn(9, C, device);
      const [x, clip, g] = [[9, C], [1], [9, C]].map(make);
      const [y] = invoke("relu", [x]);
      const { made, grid, back } = quantizer(y, clip);
      expect(read(invoke("relu_operand", [x, clip], CODES))).toEqual(read(made));

      const [gy, gclip] = back(g);
      const [gx] = invoke("relu_grad", [y, gy]);
      const [short] = invoke("cast", [gx], { dtype: dtypeCode("bf16") });
      for (const [bf16, expected] of [gx, short].entries()) {
        const joined = invoke("relu_operand_grad", [x, clip, ...grid, g], { ...CODES, bf16 });
        expect(differences(joined, [expected, gclip], device)).toEqual([]);
      }
    });
  });

  it.each([6, 32, 64, 128])("rope with the grids of its heads is the two ops, D %d", (D) => {
    scope(() => {
      const [heads, T] = [5, 7];
      const make = drawn(T, heads * D, device);
      const [x, cos, sin] = [
        [2, T, heads * D],
        [T, D / 2],
        [T, D / 2],
      ].map(make);
      const [clip, g] = [make([1]), make([2, T, heads * D])];
      const [y] = invoke("rope", [x, cos, sin], { heads, inverse: 0, bf16: 0 });
      const whole = { ...QUANTIZER, group: D };
      const grid = invoke("quant_grid", [y, clip, undefined, undefined], {
        ...whole,
        round_f16: 0,
      });
      const joined = invoke("rope_grid", [x, cos, sin, clip], { ...CODES, heads });
      expect(read(joined)).toEqual(read([y, ...grid]));

      const given = [y, ...grid, g, clip, undefined, undefined, undefined];
      const [gy, gclip] = invoke("fake_quant_grad", given, { ...whole, need_gx: 1 });
      for (const bf16 of [0, 1]) {
        const [gx] = invoke("rope", [gy, cos, sin], { heads, inverse: 1, bf16 });
        const inputs = [y, cos, sin, clip, ...grid, g];
        const joinedBack = invoke("rope_grid_grad", inputs, { ...CODES, heads, bf16 });
        expect(differences(joinedBack, [gx, gclip], device)).toEqual([]);
      }
    });
  });

  it.each(HEADS)("attention with its quantizer is the two ops, %o", ({ T, heads, kv, D }) => {
    scope(() => {
      const make = drawn(T, heads * D, device);
      const wide = [2, T, heads * D];
      const [q, k, v] = [heads, kv, kv].map((count) => make([2, T, count * D]));
      const [clip, g] = [make([1]), make(wide)];
      const inputs = [q, k, v, ...Array(6).fill(undefined)];
      const params = { heads, kv_heads: kv, bits: 0, scale: 1 / Math.sqrt(D) };
      const [o, lse, kept] = invoke("attention", inputs, { ...params, keep: 1 });
      const { made, grid, back } = quantizer(o, clip);
      const both = { ...params, row_bits: CODES.bits, floor: CODES.floor };
      const joined = invoke("attention_operand", [...inputs, clip], { ...both, keep: 0 });
      expect(read([...joined.slice(0, 2), ...joined.slice(3)])).toEqual(read([o, lse, ...made]));

      const [go, gclip] = back(g);
      const separate = invoke("attention_grad", [...inputs, o, lse, go, undefined], params);
      for (const own of [undefined, kept]) {
        const behind = [clip, o, lse, ...grid, g, own];
        const joinedBack = invoke("attention_operand_grad", [...inputs, ...behind], both);
        expect(differences(joinedBack, [...separate, gclip], device)).toEqual([]);
      }
    });
  });
});

describe("a quantizer behind a norm", () => {
  const params = { ...CODES, group: 0, symmetric: false, operand: "codes" } as const;

  /** Loss and gradients of a linear on quantized tokens, and of one that reads them as they are. */
  function gradients(alsoPlain: boolean): readonly unknown[] {
    return scope(() => {
      const make = drawn(6, 16, "cpu");
      const tape = new Tape();
      const shapes = [[6, 16], [16], [16], [1], [8, 16], [8, 16]];
      const vars = shapes.map((shape) => tape.parameter(make(shape)));
      const [x, w, b, clip, first, second] = vars as [Var, Var, Var, Var, Var, Var];
      const normed = rmsNorm(tape, x, w, 1e-5, b);
      const rows = fakeQuant(tape, normed, clip, params);
      const weight = (v: Var) => fakeQuant(tape, v, undefined, params);
      const outputs = [linear(tape, rows, weight(first)), linear(tape, rows, weight(second))];
      if (alsoPlain) outputs.push(linear(tape, normed, first));
      const target = tape.constant(make([6, 8]));
      const losses = outputs.map((y) => mse(tape, y, target));
      const loss = losses.reduce((sum, own) => add(tape, sum, own));
      const value = loss.value.tensor.read();
      tape.backward(loss);
      return { found: [value, ...read(vars.map((v) => tape.gradient(v)))] };
    }).found;
  }

  it.each([false, true])("has the same gradients, read by others too: %s", (alsoPlain) => {
    const live = liveTensors();
    state.precision = "bf16";
    const before = kernelCalls("cpu")["rms_norm_operand_grad"] as number;
    const fused = gradients(alsoPlain);
    expect((kernelCalls("cpu")["rms_norm_operand_grad"] as number) - before).toBe(1);
    state.waits = false;
    const separate = gradients(alsoPlain);
    // Where the norm is read twice, its gradients are summed before it or behind it.
    if (!alsoPlain) expect(fused).toEqual(separate);
    else expect(fused[0]).toEqual(separate[0]);
    expect(liveTensors()).toBe(live);
  });
});

const FLOATS_OF_LLAMA = { rms_norm_fp4_grad: 2, silu_mul_fp4_grad: 1 };

describe("a step of the affine phase in bf16", () => {
  const norms = (op: string): Readonly<Record<string, number>> => ({
    [`${op}_operand_grad`]: 2,
    attention_operand_grad: 1,
    rope_grid_grad: op === "rms_norm" ? 2 : 0,
  });
  // A relu passes its gradient on in bf16, as the gate does with and without its quantizer: what is summed of
  // it over tokens, the biases in front, is then that far away.
  const short = 0.02;
  it.each([
    ["W4A4", "llama-gqa-4m", { wbits: 4, abits: 4 }, norms("rms_norm"), 0],
    ["W3A6", "llama-gqa-4m", { wbits: 3, abits: 6 }, { silu_mul_operand_grad: 1 }, 0],
    ["W4A4", "opt-5m", { wbits: 4, abits: 4 }, norms("layer_norm"), short],
    ["W4A6", "opt-5m", { wbits: 4, abits: 6 }, { relu_operand_grad: 1 }, short],
    ["NVFP4", "llama-gqa-4m", { scheme: "NVFP4" }, FLOATS_OF_LLAMA, 0],
    ["MXFP4", "llama-gqa-4m", { scheme: "MXFP4" }, FLOATS_OF_LLAMA, 0],
    ["NVFP4", "opt-5m", { scheme: "NVFP4" }, { layer_norm_fp4_grad: 2 }, 0],
  ] as const)("is the same with quantizers taken in and without, %s of %s", async (...args) => {
    const [, fixture, options, expected, limit] = args;
    state.precision = "bf16";
    const before = { ...kernelCalls("cpu") };
    const fused = await trainingGradients("cpu", options, fixture);
    const calls = kernelCalls("cpu");
    for (const [op, count] of Object.entries(expected)) {
      expect((calls[op] as number) - (before[op] as number), op).toBe(count);
    }
    state.waits = false;
    const separate = await trainingGradients("cpu", options, fixture);
    for (const { name, distance } of distances(separate, fused)) {
      const isShift = name === "updown.log_s" || name === "norm.norm2.shift";
      expect(distance, name).toBeLessThanOrEqual(isShift ? limit : 0);
    }
  });
});
