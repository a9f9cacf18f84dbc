// Factors that wait (ScaledVar): the same loss and gradients as multiplying them in at once.
import { describe, expect, it } from "vitest";
import type { Graph, Var } from "../lib/autograd/graph.ts";
import { fakeQuant } from "../lib/autograd/ops/fake-quant.ts";
import { headMatmul } from "../lib/autograd/ops/head-matmul.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { rotatePairs } from "../lib/autograd/ops/rotate-pairs.ts";
import { scaleWeight } from "../lib/autograd/ops/scale-weight.ts";
import { ScaledVar } from "../lib/autograd/scaled.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";

const [TOKENS, O, I] = [5, 8, 6];
const QUANTIZER = { bits: 3, group: 0, symmetric: false, floor: 2 ** -14 };

const draw = new Draw(3, "f64");
const VALUES = {
  x: draw.normal([TOKENS, I]),
  w: draw.normal([O, I]),
  rows: draw.normal([O], 0.3, 1),
  columns: draw.normal([I], 0.3, 1),
  clip: draw.normal([2, O, 1], 0.7, 2),
  m: draw.normal([2, 4, 4]),
  narrow: draw.normal([2, 3, 3]),
  log_r: draw.normal([2, 2], 0.3),
  theta: draw.normal([2, 2]),
  target: draw.normal([TOKENS, O]),
};
type Name = keyof typeof VALUES;
type Scale = (graph: Graph, w: Var, scales: { rows?: Var; columns?: Var }) => Var;

/** Leaves the product to whoever uses it, as scaleWeight does on a GPU. */
const waiting: Scale = (graph, w, scales) =>
  new ScaledVar(w, scales, ({ base, rows, columns }) =>
    scaleWeight(graph, base, { rows, columns }),
  );

/** Loss and gradients of a linear whose weight is made by `make`, quantized. */
function run(make: (graph: Graph, v: Record<Name, Var>) => Var): Record<string, number[]> {
  return scope(() => {
    const tape = new Tape();
    const place = { device: "cpu", dtype: "f64" } as const;
    const vars = Object.fromEntries(
      Object.entries(VALUES).map(([name, value]) => {
        const tensor = toTensor(value, place);
        return [name, name === "target" ? tape.constant(tensor) : tape.parameter(tensor)];
      }),
    ) as Record<Name, Var>;
    const w = fakeQuant(tape, make(tape, vars), vars.clip, QUANTIZER);
    const loss = mse(tape, linear(tape, vars.x, w), vars.target);
    const result: Record<string, number[]> = { loss: [loss.value.tensor.item()] };
    tape.backward(loss);
    for (const [name, v] of Object.entries(vars)) {
      const gradient = name === "target" ? undefined : tape.gradient(v);
      if (gradient) result[name] = [...(gradient.read() as Float64Array)];
    }
    return result;
  });
}

function expectSame(make: (scale: Scale) => (graph: Graph, v: Record<Name, Var>) => Var): void {
  const at_once = run(make(scaleWeight));
  const later = run(make(waiting));
  expect(Object.keys(later)).toEqual(Object.keys(at_once));
  for (const [name, expected] of Object.entries(at_once)) {
    for (const [i, value] of expected.entries()) expect(later[name]?.[i]).toBeCloseTo(value, 10);
  }
}

describe("factors that wait", () => {
  it("of rows and columns reach a quantizer", () => {
    expectSame(
      (scale) =>
        (g, { w, rows, columns }) =>
          scale(g, w, { rows, columns }),
    );
  });

  it("of columns alone, past matrices of the heads and rotated pairs", () => {
    expectSame((scale) => (g, { w, columns, m, log_r, theta }) => {
      const mixed = headMatmul(g, scale(g, w, { columns }), m, {
        side: "rows",
        transpose: true,
        heads: 2,
      });
      return rotatePairs(g, mixed, log_r, theta, { heads: 2, signR: 1 });
    });
  });

  it("are multiplied in for an op that knows none", () => {
    expectSame((scale) => (g, { w, rows, columns, narrow }) => {
      const scaled = scale(g, scale(g, w, { rows, columns }), { rows });
      return headMatmul(g, scaled, narrow, { side: "columns", transpose: false, heads: 2 });
    });
  });
});
