// Ops that take the quantizer behind them in: the same bytes as one after the other, in each op and in a
// step. The CPU runs the same ops as a GPU, so that the path is tested here; a GPU sums in other orders.
import { createHash } from "node:crypto";
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
import { trainingGradients } from "./helpers/block-gradients.ts";
import { difference } from "./helpers/compare.ts";
import { devices } from "./helpers/device.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";
import { decode } from "./helpers/value.ts";

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

/** The inputs of a call, and the gradient of what it gives. */
function drawn(M: number, C: number, device: string): (shape: readonly number[]) => Tensor {
  const draw = new Draw(M + C, "f32", true);
  return (shape) => toTensor(draw.normal(shape, 0.7, 0.3), { device, dtype: "f32" });
}

/** What the sums of a GPU, which are in other orders, may be apart, and their rounding to bf16. */
const SUMS = { rtol: 2 ** -7, atol: 1e-4 };

/** Where gradients differ: the bytes on a CPU, more than that elsewhere. */
function differences(
  actual: readonly Tensor[],
  expected: readonly (Tensor | undefined)[],
  device: string,
): readonly string[] {
  const limits = device === "cpu" ? { rtol: 0, atol: 0 } : SUMS;
  return actual.flatMap((tensor, i) => {
    const other = expected[i] as Tensor;
    const read = (x: Tensor) => decode(x.read(), x.dtype);
    return difference(`gradient ${i}`, read(tensor), read(other), limits) ?? [];
  });
}

/** Digests of the bytes. */
const read = (tensors: readonly (Tensor | undefined)[]) =>
  tensors.map((tensor) => {
    const { buffer } = tensor?.read() ?? new Uint8Array();
    return createHash("sha256").update(new Uint8Array(buffer)).digest("hex");
  });

const NORMS = [
  { op: "rms_norm", params: { need_gx: 1, need_gb: 1 } },
  { op: "layer_norm", params: {} },
] as const;
const BY_NORM = NORMS.flatMap((norm) => LENGTHS.map((columns) => ({ ...norm, columns })));

/** quant_operand of rows of y, and fake_quant_grad of them. */
function quantizer(y: Tensor | undefined, clip: Tensor | undefined) {
  const whole = { ...QUANTIZER, dtype: dtypeCode("i8") };
  const made = invoke("quant_operand", [y, clip, undefined, undefined, undefined], whole);
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

describe("a step of the affine phase in bf16", () => {
  it.each([
    ["W4A4", { wbits: 4, abits: 4 }],
    ["W3A6", { wbits: 3, abits: 6 }],
  ] as const)("has the same bytes with quantizers taken in and without, %s", async (_, options) => {
    state.precision = "bf16";
    const before = { ...kernelCalls("cpu") };
    const fused = await trainingGradients("cpu", options);
    const calls = kernelCalls("cpu");
    for (const [op, count] of [
      ["rms_norm_operand_grad", 2],
      ["silu_mul_operand_grad", 1],
    ] as const) {
      expect((calls[op] as number) - (before[op] as number), op).toBe(count);
    }
    state.waits = false;
    expect(await trainingGradients("cpu", options)).toEqual(fused);
  });
});
