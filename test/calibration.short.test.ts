// What a GPU does whose products are in bf16: weights in 16 bits, operands quantized once for several
// products, gradients of weights in bf16. The CPU runs the same ops, so that the path is tested here.
import { setImmediate } from "node:timers/promises";
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Graph, Var } from "../lib/autograd/graph.ts";
import { add } from "../lib/autograd/ops/add.ts";
import { headMatmul } from "../lib/autograd/ops/head-matmul.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { rotatePairs } from "../lib/autograd/ops/rotate-pairs.ts";
import { scaleWeight } from "../lib/autograd/ops/scale-weight.ts";
import { siluMul } from "../lib/autograd/ops/silu-mul.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { trainingWeights } from "../lib/calibration/short-weights.ts";
import { fakeQuantWeight, TokenQuantizers } from "../lib/quant/integers.ts";
import type { QuantScheme } from "../lib/quant/scheme.ts";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invokeOne, kernelCalls } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { distances, type Gradients, trainingGradients } from "./helpers/block-gradients.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";

const device = vi.hoisted(() => ({ precision: "f32" as "f32" | "bf16" }));
vi.mock("../lib/tensor/precision.ts", async (original) => ({
  ...(await original<object>()),
  precisionOf: () => device.precision,
}));

beforeEach(() => {
  device.precision = "f32";
});

/** What `body` gives in f32 and in bf16. */
async function both<T>(body: () => T | Promise<T>): Promise<readonly [T, T]> {
  device.precision = "f32";
  const exact = await body();
  device.precision = "bf16";
  return [exact, await body()];
}

const [TOKENS, O, I] = [12, 16, 32];
const draw = new Draw(7, "f32");
const VALUES = {
  x: draw.normal([TOKENS, I]),
  w: draw.normal([O, I], 0.2),
  up: draw.normal([O, I], 0.2),
  clip: draw.normal([2, O, 1], 0.3, 4),
  token: draw.normal([1], 0, 4),
  offset: draw.uniform([O, I], -0.4, 0.4),
  columns: draw.normal([I], 0.1, 1),
  m: draw.normal([2, 8, 8], 0.1),
  log_r: draw.normal([2, 4], 0.2),
  theta: draw.normal([2, 4]),
  target: draw.normal([TOKENS, O]),
};
type Name = keyof typeof VALUES;

/** Loss and gradients of what `make` records; in bf16 with weights in f16. */
function gradients(make: (graph: Graph, v: Record<Name, Var>) => Var): Gradients {
  const found = new Map<string, Float32Array>();
  scope(() => {
    const tape = new Tape();
    const vars = Object.fromEntries(
      Object.entries(VALUES).map(([name, value]) => {
        const tensor = toTensor(value, { device: "cpu", dtype: "f32" });
        const isWeight = name === "w" || name === "up";
        const type = dtypeCode(isWeight && device.precision === "bf16" ? "f16" : "f32");
        const held = invokeOne("cast", [tensor], { dtype: type });
        const isConstant = isWeight || name === "target";
        return [name, isConstant ? tape.constant(held) : tape.parameter(held)];
      }),
    ) as Record<Name, Var>;
    const loss = mse(tape, make(tape, vars), vars.target);
    found.set("loss", loss.value.tensor.floats());
    tape.backward(loss);
    for (const [name, v] of Object.entries(vars)) {
      const gradient = name === "target" ? undefined : tape.gradient(v);
      if (!gradient) continue;
      found.set(name, invokeOne("cast", [gradient], { dtype: dtypeCode("f32") }).floats());
    }
  });
  return found;
}

/** The same, but for rounding: of operands to bf16, which weight-only recipes train on. */
async function expectClose(
  limit: number,
  make: (graph: Graph, v: Record<Name, Var>) => Var,
): Promise<void> {
  const before = liveTensors();
  const [exact, short] = await both(() => gradients(make));
  for (const { name, distance } of distances(exact, short)) {
    expect(distance, name).toBeLessThan(limit);
  }
  expect(liveTensors()).toBe(before);
}

const ONLY_WEIGHTS: QuantScheme = { wbits: 4, abits: 16, groupSize: 0, symmetric: false };
const BOTH: QuantScheme = { ...ONLY_WEIGHTS, abits: 4 };

describe("a linear in bf16", () => {
  it("of quantized weights has the gradients of f32", () =>
    expectClose(0.02, (graph, { x, w, clip, columns }) =>
      linear(
        graph,
        x,
        fakeQuantWeight(graph, scaleWeight(graph, w, { columns }), clip, ONLY_WEIGHTS),
      ),
    ));

  it("of quantized tokens and weights, too, as a product of whole numbers", async () => {
    const before = kernelCalls("cpu")["quant_operand"] as number;
    await expectClose(0.05, (graph, { x, w, clip, token, columns }) => {
      const tokens = new TokenQuantizers(4, new Map([["x", token]]), BOTH);
      const weight = fakeQuantWeight(graph, scaleWeight(graph, w, { columns }), clip, BOTH);
      return linear(graph, tokens.apply(graph, "x", x, 0), weight);
    });
    expect((kernelCalls("cpu")["quant_operand"] as number) - before).toBe(2);
  });

  it("of weights with rounding offsets, too", () =>
    expectClose(0.02, (graph, { x, w, clip, offset }) =>
      linear(graph, x, fakeQuantWeight(graph, w, clip, ONLY_WEIGHTS, offset)),
    ));

  it("of weights under head matrices and rotations, too", () =>
    expectClose(0.05, (graph, { x, w, clip, m, log_r, theta }) => {
      const heads = { side: "rows", transpose: true, heads: 2 } as const;
      const mixed = rotatePairs(graph, headMatmul(graph, w, m, heads), log_r, theta, {
        heads: 2,
        signR: 1,
      });
      return linear(graph, x, fakeQuantWeight(graph, mixed, clip, ONLY_WEIGHTS));
    }));

  it("that shares its input, and a weight that is used twice, add their gradients", () =>
    expectClose(0.03, (graph, { x, w, up, columns, clip }) => {
      const scaled = scaleWeight(graph, w, { columns });
      const quantized = fakeQuantWeight(graph, scaled, clip, ONLY_WEIGHTS);
      const other = fakeQuantWeight(graph, scaleWeight(graph, up, { columns }), clip, ONLY_WEIGHTS);
      const both = add(graph, linear(graph, x, quantized), linear(graph, x, scaled));
      return siluMul(graph, both, linear(graph, x, other));
    }));
});

describe("a step of the affine phase in bf16", () => {
  // Rounding moves weights near the middle of two codes to the other one, and what a transform
  // gains is a small difference of large gradients: single parameters may be far off, most are not.
  it.each([
    ["W4A4", { wbits: 4, abits: 4 }, 0.4],
    ["W3A16", { wbits: 3 }, 0.15],
    ["W4A16 in groups", { wbits: 4, groupSize: 32 }, 0.2],
    ["W3A16 with a matrix behind each norm", { wbits: 3, normFull: true }, 0.3],
  ] as const)("has the gradients of f32, %s", async (_, options, limit) => {
    const before = liveTensors();
    const [exact, short] = await both(() => trainingGradients("cpu", options));
    const found = distances(exact, short);
    const sorted = found.map(({ distance }) => distance).sort((a, b) => a - b);
    expect(sorted[Math.floor(sorted.length / 2)]).toBeLessThan(limit);
    expect(found.find(({ name }) => name === "loss")?.distance).toBeLessThan(0.02);
    // What the last step read is given back after it has been told.
    await setImmediate();
    expect(liveTensors()).toBe(before);
  });
});

describe("training weights", () => {
  const problem = {
    model: { linears: [{ key: "q" }, { key: "gate" }] },
    recipe: { sites: false },
    context: { device: "cpu" },
  } as unknown as Parameters<typeof trainingWeights>[0];

  it("are copies in f16 where that holds the numbers, and the weights themselves in f32", async () => {
    const live = liveTensors();
    const fine = Tensor.from(Float32Array.of(0.5, -0.25, 3e-3, 1.5), [2, 2]);
    const tiny = Tensor.from(Float32Array.of(1e-7, -2e-7, 3e-8, 1e-7), [2, 2]);
    const gain = Tensor.from(Float32Array.of(1, 2));
    const given = { q: fine, gate: tiny, norm1: gain };
    const same = await trainingWeights(problem, "affine", given);
    expect(same.weights).toBe(given);
    device.precision = "bf16";
    const { weights, dispose } = await trainingWeights(problem, "affine", given);
    expect(weights["q"]?.dtype).toBe("f16");
    expect(weights["gate"]).toBe(tiny);
    expect(weights["norm1"]).toBe(gain);
    dispose();
    for (const tensor of Object.values(given)) tensor.dispose();
    expect(liveTensors()).toBe(live);
  });
});
