// Folding changes the weights and not the function, for any invertible parameters.
import { describe, expect, it } from "vitest";
import { constants, describeSite, foldSites, siteName } from "../lib/affine/sites.ts";
import { Eager, type Var } from "../lib/autograd/graph.ts";
import type { Mask } from "../lib/autograd/ops/gradual-mask.ts";
import type { Model, SiteSpec } from "../lib/models/family.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { Draw } from "./helpers/random.ts";
import { toTensor } from "./helpers/run-op.ts";
import {
  blockOutput,
  randomSites,
  relativeChange,
  tensorsOf,
  tinyModel,
  tinyWeights,
} from "./helpers/tiny-block.ts";
import type { FloatType } from "./helpers/value.ts";

interface Folded {
  /** Change of the block's output, relative to what the block adds. */
  readonly output: number;
  /** Keys of the weights that the fold changed. */
  readonly changed: readonly string[];
}

/** Folds sites with random parameters into random weights and compares the block's outputs. */
function fold(
  model: Model,
  specs: readonly SiteSpec[],
  dtype: FloatType,
  seed: number,
  mask: Mask = { band: 2, sf: 0.5 },
): Folded {
  return scope(() => {
    const draw = new Draw(seed, dtype);
    const weights = tensorsOf(tinyWeights(model, draw), dtype);
    const graph = new Eager();
    const parameters = new Map<string, Var>(
      Object.entries(tensorsOf(randomSites(model, draw), dtype)).map(([name, tensor]) => [
        name,
        graph.constant(tensor),
      ]),
    );
    const x = toTensor(draw.normal([2, 6, model.shape.hidden]), { device: "cpu", dtype });
    const folded = constants(graph, weights);
    foldSites(specs, graph, folded, parameters, model.shape, () => mask);
    const before = blockOutput(model, weights, x).read();
    const after = blockOutput(model, folded, x).read();
    const changed = Object.keys(weights).filter((key) => {
      const [old, now] = [weights[key]?.read() ?? [], folded[key]?.value.tensor.read() ?? []];
      return relativeChange(old, now, new Float64Array(old.length)) > 0.01;
    });
    return { output: relativeChange(before, after, x.read()), changed };
  });
}

const model = tinyModel();
const specOf = (name: string): SiteSpec[] => model.sites.filter((spec) => siteName(spec) === name);

/** What each site may touch; everything else must stay as it is. */
const TOUCHES: Readonly<Record<string, readonly string[]>> = {
  updown: ["down", "up", "up.bias"],
  "norm.norm1": ["k", "norm1", "q", "v"],
  "norm.norm2": ["gate", "norm2", "up"],
  vo: ["o", "v", "v.bias"],
  "qk-pairs": ["k", "k.bias", "q", "q.bias"],
};

describe("folding keeps the function of a block with grouped heads and biases", () => {
  it.each(Object.entries(TOUCHES))("at %s alone, which changes %j", (name, touched) => {
    const double = fold(model, specOf(name), "f64", 41);
    expect([...double.changed].sort()).toEqual(touched);
    expect(double.output).toBeLessThan(1e-12);
    expect(fold(model, specOf(name), "f32", 41).output).toBeLessThan(1e-5);
  });

  it("at all sites together", () => {
    for (const seed of [42, 43, 44, 45]) {
      const { output, changed } = fold(model, model.sites, "f64", seed);
      expect(output).toBeLessThan(1e-12);
      expect([...changed].sort()).toEqual([...new Set(Object.values(TOUCHES).flat())].sort());
      expect(fold(model, model.sites, "f32", seed).output).toBeLessThan(1e-5);
    }
  });

  it("for every band of the mask", () => {
    for (let band = 0; band <= model.shape.headDim; band++) {
      expect(fold(model, model.sites, "f64", 46, { band, sf: 1 }).output).toBeLessThan(1e-12);
    }
  });

  it.each([
    ["one key/value head for all", { num_key_value_heads: 1 }],
    ["a key/value head for each", { num_key_value_heads: 4 }],
    ["no biases", { attention_bias: false, mlp_bias: false }],
    ["heads of two", { head_dim: 2 }],
    ["stretched rotary positions", { rope_scaling: { type: "linear", factor: 4 } }],
  ])("with %s", (_, changes) => {
    const other = tinyModel(changes);
    expect(fold(other, other.sites, "f64", 47).output).toBeLessThan(1e-12);
    expect(fold(other, other.sites, "f32", 47).output).toBeLessThan(1e-5);
  });

  it("in the order of the sites and in the reverse", () => {
    expect(fold(model, [...model.sites].reverse(), "f64", 48).output).toBeLessThan(1e-12);
  });

  it("and leaves no tensor behind", () => {
    const live = liveTensors();
    fold(model, model.sites, "f32", 49);
    expect(liveTensors()).toBe(live);
  });
});

describe("the description of a site", () => {
  it("counts the parameters that it has", () => {
    const parameters = Object.entries(randomSites(model, new Draw(1, "f64")));
    for (const spec of model.sites) {
      const own = parameters.filter(([name]) => name.startsWith(`${siteName(spec)}.`));
      const count = own.reduce((sum, [, value]) => sum + value.data.length, 0);
      const told = describeSite(spec, model.shape);
      expect(told.parameters, siteName(spec)).toBe(count);
      for (const text of told.foldsInto) expect(text).toMatch(/^(gain|rows|columns) of \w+$/);
    }
  });
});
