// Products with an inverse that remembers of what (InverseVar): the same values and gradients as
// through the inverse itself.
import { describe, expect, it } from "vitest";
import { Eager, type Graph, type Var } from "../lib/autograd/graph.ts";
import { InverseVar } from "../lib/autograd/inverse.ts";
import { headMatmul } from "../lib/autograd/ops/head-matmul.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { inverse, LastInverses, residueOf } from "../lib/autograd/ops/lu-inverse.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { reshape } from "../lib/autograd/ops/reshape.ts";
import { scaleWeight } from "../lib/autograd/ops/scale-weight.ts";
import { throughInverse } from "../lib/autograd/ops/through-inverse.ts";
import { ScaledVar } from "../lib/autograd/scaled.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { devices } from "./helpers/device.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";

const [TOKENS, C, O] = [7, 6, 5];
const place = { device: "cpu", dtype: "f64" } as const;
const draw = new Draw(5, "f64");
const noise = draw.normal([1, C, C], 0.2).data;
const VALUES = {
  x: draw.normal([TOKENS, C]),
  a: draw.value(
    noise.map((value, i) => value + (i % (C + 1) === 0 ? 1 : 0)),
    [1, C, C],
  ),
  w: draw.normal([O, C]),
  target: draw.normal([TOKENS, O]),
  other: draw.normal([TOKENS, O]),
};
type Vars = Record<keyof typeof VALUES, Var>;

function varsOf(tape: Tape): Vars {
  const entries = Object.entries(VALUES).map(([name, value]) => {
    const tensor = toTensor(value, place);
    const isTarget = name === "target" || name === "other";
    return [name, isTarget ? tape.constant(tensor) : tape.parameter(tensor)];
  });
  return Object.fromEntries(entries) as Vars;
}

/** The block of a full norm matrix: weights times it, and activations through its inverse. */
function run(multiply: (graph: Graph, vars: Vars) => Var): Record<string, number[]> {
  return scope(() => {
    const tape = new Tape();
    const vars = varsOf(tape);
    const w = headMatmul(tape, vars.w, vars.a, { side: "columns", transpose: false, heads: 1 });
    const again = headMatmul(tape, w, vars.a, { side: "columns", transpose: true, heads: 1 });
    const loss = mse(tape, linear(tape, multiply(tape, vars), again), vars.target, vars.other);
    const result: Record<string, number[]> = { loss: [loss.value.tensor.item()] };
    tape.backward(loss);
    for (const name of ["x", "a", "w"] as const) {
      result[name] = [...((tape.gradient(vars[name])?.read() ?? []) as Float64Array)];
    }
    return result;
  });
}

function expectSame(actual: Record<string, number[]>, expected: Record<string, number[]>): void {
  for (const [name, values] of Object.entries(expected)) {
    for (const [i, value] of values.entries()) expect(actual[name]?.[i]).toBeCloseTo(value, 10);
  }
}

const theLongWay = (graph: Graph, { x, a }: Vars): Var =>
  linear(graph, x, reshape(graph, inverse(graph, a), [C, C]));

describe("a product with an inverse", () => {
  it("has the gradients of the way through the inverse", () => {
    const before = liveTensors();
    expectSame(
      run((graph, { x, a }) => throughInverse(graph, x, residueOf(graph, a))),
      run(theLongWay),
    );
    expect(liveTensors()).toBe(before);
  });

  it("goes the long way in ops that know no inverses", () => {
    expectSame(
      run((graph, { x, a }) => linear(graph, x, residueOf(graph, a))),
      run(theLongWay),
    );
  });

  it("reads as the inverse, with and without a record", () => {
    scope(() => {
      const [eager, tape] = [new Eager(), new Tape()];
      const a = toTensor(VALUES.a, place);
      const expected = inverse(eager, eager.constant(a)).value.tensor.read();
      const recorded = residueOf(tape, tape.parameter(a));
      expect(recorded).toBeInstanceOf(InverseVar);
      expect(recorded.needsGrad).toBe(true);
      for (const v of [recorded, residueOf(eager, eager.constant(a))]) {
        expect(v.value.tensor.shape).toEqual([C, C]);
        expect(v.value.tensor.read()).toEqual(expected);
      }
    });
  });

  it("finds factors of rows still waiting behind a matrix on the columns", () => {
    scope(() => {
      const tape = new Tape();
      const vars = varsOf(tape);
      const rows = tape.parameter(toTensor(draw.uniform([O], 0.5, 2), place));
      const scaled = new ScaledVar(vars.w, { rows }, (waiting) =>
        scaleWeight(tape, waiting.base, { rows: waiting.rows }),
      );
      const y = headMatmul(tape, scaled, vars.a, { side: "columns", transpose: false, heads: 1 });
      const plain = headMatmul(tape, scaled.dense, vars.a, {
        side: "columns",
        transpose: false,
        heads: 1,
      });
      const expected = plain.value.tensor.read() as Float64Array;
      for (const [i, value] of (y.value.tensor.read() as Float64Array).entries()) {
        expect(value).toBeCloseTo(expected[i] as number, 12);
      }
    });
  });
});

describe("the last inverses", () => {
  const gpu = devices().find((name) => name.startsWith("cuda"));
  // Large enough that a GPU starts at the last one.
  const SIZE = 160;
  const invert = (device: string, last: LastInverses, x: number): void =>
    scope(() => {
      const graph = new Eager();
      const diagonal = (i: number) => (i % (SIZE + 1) === 0 ? x : 0);
      const values = Float64Array.from({ length: SIZE * SIZE }, (_, i) => diagonal(i));
      const a = toTensor(draw.value(values, [1, SIZE, SIZE]), { device, dtype: "f32" });
      inverse(graph, graph.constant(a), { last, name: "norm" });
    });

  it("are not kept on the CPU, which has no use for them", () => {
    const last = new LastInverses();
    invert("cpu", last, 2);
    expect(last.get("norm")).toBeUndefined();
  });

  it.skipIf(gpu === undefined)("stay in one tensor, where a recorded step looks for them", () => {
    const before = liveTensors();
    const last = new LastInverses();
    invert(gpu as string, last, 2);
    const kept = last.get("norm");
    expect(kept?.floats()[0]).toBeCloseTo(0.5, 6);
    invert(gpu as string, last, 2.01);
    expect(last.get("norm")).toBe(kept);
    const expected = new Float32Array(SIZE * SIZE);
    for (let i = 0; i < SIZE; i++) expected[i * (SIZE + 1)] = 1 / 2.01;
    for (const [i, value] of (kept?.floats() ?? []).entries()) {
      expect(value).toBeCloseTo(expected[i] as number, 6);
    }
    last.dispose();
    expect(liveTensors()).toBe(before);
  });
});
