// Gradients of compositions against central differences in float64: the folds of every site, and a
// whole block with all of them. Each pair of lib/autograd/ops by itself is in ops.gradient.test.ts;
// here every pair also gives one gradient alone as it gives all of them together.
import { describe, expect, it } from "vitest";
import { constants, foldSites, siteName } from "../lib/affine/sites.ts";
import { gradcheck } from "../lib/autograd/gradcheck.ts";
import type { Graph, OpPair, Var } from "../lib/autograd/graph.ts";
import { add } from "../lib/autograd/ops/add.ts";
import type { Mask } from "../lib/autograd/ops/gradual-mask.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { Tape } from "../lib/autograd/tape.ts";
import type { SiteSpec } from "../lib/models/family.ts";
import { passThrough } from "../lib/quant/activations.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { GRAPH_CASES } from "./cases/graph.ts";
import { difference } from "./helpers/compare.ts";
import { Draw } from "./helpers/random.ts";
import {
  HEAD_NORMS,
  randomSites,
  tensorsOf,
  tinyModel,
  tinyWeights,
  type Values,
} from "./helpers/tiny-block.ts";
import type { Value } from "./helpers/value.ts";

type Loss = (graph: Graph, inputs: readonly Var[]) => Var;

function tensor({ data, shape }: Value): Tensor {
  return Tensor.from(Float64Array.from(data), shape);
}

/** Gradients of the inputs that are wanted; the others are constants. */
function tapeGradients(
  loss: Loss,
  inputs: readonly Value[],
  wanted: (input: number) => boolean = () => true,
): readonly (Float64Array | undefined)[] {
  return scope(() => {
    const tape = new Tape();
    const vars = inputs.map((value, i) =>
      wanted(i) ? tape.parameter(tensor(value)) : tape.constant(tensor(value)),
    );
    tape.backward(loss(tape, vars));
    return { all: vars.map((v) => tape.gradient(v)?.read() as Float64Array | undefined) };
  }).all;
}

const largest = (data: ArrayLike<number> | undefined): number =>
  Array.from(data ?? []).reduce((max, x) => Math.max(max, Math.abs(x)), 0);

describe("gradcheck", () => {
  const square: OpPair<number> = {
    name: "square",
    forward: ([x]) => ({ tensor: invokeOne("mul", [x?.tensor, x?.tensor], { alpha: 1 }) }),
    backward: ({ g, inputs, params: factor }) => [
      invokeOne("mul", [g, inputs[0]?.tensor], { alpha: factor }),
    ],
  };
  const inputs = [new Draw(1, "f64").normal([4])];
  const loss =
    (factor: number): Loss =>
    (graph, [x]) =>
      mse(
        graph,
        graph.apply(square, [x], factor),
        graph.constant(Tensor.from(new Float64Array(4))),
      );

  it("passes a right gradient and finds a wrong one, with its place", () => {
    expect(gradcheck(loss(2), inputs).error).toBeLessThan(1e-8);
    const wrong = gradcheck(loss(2.1), inputs);
    expect(wrong.error).toBeGreaterThan(1e-2);
    expect(wrong.tape / wrong.difference).toBeCloseTo(1.05, 4);
    expect(wrong).toMatchObject({ input: 0, index: expect.any(Number) });
  });

  it("leaves the inputs and the live tensors as they were", () => {
    const [before, live] = [Array.from(inputs[0]?.data ?? []), liveTensors()];
    gradcheck(loss(2), inputs);
    expect(Array.from(inputs[0]?.data ?? [])).toEqual(before);
    expect(liveTensors()).toBe(live);
  });
});

describe("each pair", () => {
  it.each(GRAPH_CASES.map((graphCase) => [graphCase.title, graphCase] as const))(
    "gives each gradient alone as it gives all: %s",
    (_, { inputs, loss }) => {
      const all = tapeGradients(loss, inputs);
      for (const [i] of inputs.entries()) {
        const alone = tapeGradients(loss, inputs, (input) => input === i);
        const what = `gradient of input ${i}`;
        const tolerance = { rtol: 1e-12, atol: 1e-15 };
        expect(difference(what, alone[i] ?? [], all[i] ?? [], tolerance)).toBeUndefined();
        expect(alone.filter((gradient) => gradient !== undefined)).toHaveLength(1);
      }
    },
  );
});

describe.each([
  ["LLaMA", tinyModel()],
  ["Qwen 3", tinyModel(HEAD_NORMS)],
])("of %s", (_family, model) => {
  const mask: Mask = { band: 2, sf: 0.3 };
  const draw = new Draw(21, "f64");
  const weights = tinyWeights(model, draw);
  const x = draw.normal([2, 3, model.shape.hidden]);
  const y = draw.normal(x.shape, 3);
  const names = Object.keys(randomSites(model, draw));

  /** Folds sites into the weights. The variables follow the names; a name without one is left out. */
  function fold(graph: Graph, specs: readonly SiteSpec[], vars: ReadonlyMap<string, Var>) {
    const folded = constants(graph, tensorsOf(weights, "f64"));
    foldSites(specs, graph, folded, vars, model.shape, () => mask);
    return folded;
  }

  const named = (list: readonly string[], vars: readonly Var[]): Map<string, Var> =>
    new Map(list.map((name, i) => [name, vars[i] as Var]));

  /** Sum of the mean squared distances of several values from random targets. */
  function distances(graph: Graph, values: readonly Var[], targets: Values): Var {
    return values
      .map((value, i) => {
        const { shape } = value.value.tensor;
        return mse(graph, value, graph.constant(tensor({ ...(targets[i] as Value), shape })));
      })
      .reduce((sum, next) => add(graph, sum, next));
  }

  describe("the fold of", () => {
    const sites = [...model.sites.map((spec) => [siteName(spec), [spec]] as const)];
    it.each([...sites, ["all sites", model.sites] as const])("%s", (name, specs) => {
      const own = names.filter((parameter) => name === "all sites" || parameter.startsWith(name));
      const values = randomSites(model, draw);
      const targets = Object.values(weights).map(({ shape }) => draw.normal(shape, 10));
      const loss: Loss = (graph, vars) => {
        const folded = fold(graph, specs, named(own, vars));
        const ordered = Object.keys(weights).map((key) => folded[key] as Var);
        return distances(graph, ordered, targets as unknown as Values);
      };
      const inputs = own.map((parameter) => values[parameter] as Value);
      expect(own.length).toBeGreaterThan(0);
      for (const gradient of tapeGradients(loss, inputs))
        expect(largest(gradient)).toBeGreaterThan(0.1);
      expect(gradcheck(loss, inputs).error).toBeLessThan(1e-6);
    });
  });

  describe("a whole block with every site", () => {
    const values = randomSites(model, draw);
    const inputs = names.map((name) => values[name] as Value);

    /** The loss of the folded block, with fixed numbers added to each weight on the way. */
    const lossWith =
      (errors: Values | undefined): Loss =>
      (graph, vars) =>
        blockLoss(graph, fold(graph, model.sites, named(names, vars)), errors);

    function blockLoss(graph: Graph, folded: Record<string, Var>, errors: Values | undefined): Var {
      const used = Object.entries(folded).map(([key, w]) => {
        const error = errors?.[key];
        const { shape } = w.value.tensor;
        return [key, error ? add(graph, w, graph.constant(tensor({ ...error, shape }))) : w];
      });
      const context = model.context(3, "f64");
      const all = Object.fromEntries(used) as Record<string, Var>;
      const out = model.block(graph, context, all, graph.constant(tensor(x)), passThrough);
      return mse(graph, out, graph.constant(tensor(y)));
    }

    it("differentiates what a quantizer between fold and block would see", () => {
      // Equivalence would make every gradient zero; fixed errors, standing in for rounding, do not.
      const errors = Object.fromEntries(
        Object.entries(weights).map(([key, { shape }]) => [key, draw.normal(shape, 0.3)]),
      );
      const loss = lossWith(errors);
      for (const [i, gradient] of tapeGradients(loss, inputs).entries()) {
        expect(largest(gradient), names[i]).toBeGreaterThan(1e-2);
      }
      expect(gradcheck(loss, inputs).error).toBeLessThan(1e-6);
    });

    it("has no gradient at all without quantizers: every site is an equivalence", () => {
      for (const [i, gradient] of tapeGradients(lossWith(undefined), inputs).entries()) {
        expect(largest(gradient), names[i]).toBeLessThan(1e-12);
      }
    });

    it("differentiates the weights and the input too", () => {
      const keys = Object.keys(weights);
      const loss: Loss = (graph, vars) => {
        const context = model.context(3, "f64");
        const block = Object.fromEntries(keys.map((key, i) => [key, vars[i] as Var]));
        const out = model.block(graph, context, block, vars[keys.length] as Var, passThrough);
        return mse(graph, out, graph.constant(tensor(y)));
      };
      const leaves = [...keys.map((key) => weights[key] as Value), x];
      expect(gradcheck(loss, leaves).error).toBeLessThan(1e-6);
    });
  });
});
