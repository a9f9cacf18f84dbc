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
  HEAD_NORMS,
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
  parametersOf: Model = model,
): Folded {
  return scope(() => {
    const draw = new Draw(seed, dtype);
    const weights = tensorsOf(tinyWeights(model, draw), dtype);
    const graph = new Eager();
    const parameters = new Map<string, Var>(
      Object.entries(tensorsOf(randomSites(parametersOf, draw), dtype)).map(([name, tensor]) => [
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

/** The change that scaled rotations of the rows of q and k make. */
function foldRows(model: Model, seed: number): number {
  const rows = [{ kind: "qk-pairs", q: "q", k: "k" }] as const;
  return fold(model, rows, "f64", seed, undefined, tinyModel()).output;
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

describe("folding keeps the function of a block with norms of q and k", () => {
  const normed = tinyModel(HEAD_NORMS);

  it("at their gains alone, of which all heads have one", () => {
    const gains = normed.sites.filter(({ kind }) => kind === "qk-gains");
    const double = fold(normed, gains, "f64", 51);
    expect([...double.changed].sort()).toEqual(["k_norm", "q_norm"]);
    expect(double.output).toBeLessThan(1e-12);
    expect(fold(normed, gains, "f32", 51).output).toBeLessThan(1e-5);
  });

  it.each([
    ["biases and grouped heads", {}],
    ["no biases", { attention_bias: false }],
    ["heads of two", { head_dim: 2 }],
  ])("at all sites together, with %s", (_, changes) => {
    const other = tinyModel({ ...HEAD_NORMS, ...changes });
    expect(other.sites.map(siteName)).toEqual([
      ...["updown", "norm.norm1", "norm.norm2", "vo", "qk-gains"],
    ]);
    expect(fold(other, other.sites, "f64", 52).output).toBeLessThan(1e-12);
    expect(fold(other, [...other.sites].reverse(), "f64", 53).output).toBeLessThan(1e-12);
    expect(fold(other, other.sites, "f32", 52).output).toBeLessThan(1e-5);
  });

  it("but not at the rows of q and k, as LLaMA has it", () => {
    expect(foldRows(tinyModel({ mlp_bias: false }), 54)).toBeLessThan(1e-12);
    expect(foldRows(normed, 54)).toBeGreaterThan(1e-3);
  });
});

describe("the description of a site", () => {
  it.each([model, tinyModel(HEAD_NORMS)])("counts the parameters that it has", (model) => {
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
