// Error of each layer, weights and input apart, against the same sums in plain numbers.
import { describe, expect, it } from "vitest";
import { materialize, type Var } from "../lib/autograd/graph.ts";
import { quantizeBlock, storedWeights } from "../lib/calibration/finish-block.ts";
import { layerErrors } from "../lib/calibration/layer-errors.ts";
import { forward } from "../lib/calibration/passes.ts";
import { Stream } from "../lib/calibration/stream.ts";
import { disposeAll, loadBlock } from "../lib/models/load.ts";
import { schemeOf } from "../lib/quant/presets.ts";
import { tokenQuantizers } from "../lib/quant/tokens.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import type { LayerError } from "../lib/types.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { TRAINED, withModel } from "./helpers/fixture.ts";

const BLOCK = 1;
const TOKENS = 12;

interface Measured {
  readonly errors: Record<string, LayerError>;
  /** |Wq x - W x| / |W x| and |W xq - W x| / |W x| of a linear, from one window, in float64. */
  readonly byHand: (key: string) => { weight: number; activation: number };
}

/** Errors of a block rounded to nearest, from `windows` equal windows. */
async function measure(
  scheme: string,
  {
    kept = [],
    windows = 1,
    signal,
  }: { kept?: string[]; windows?: number; signal?: AbortSignal } = {},
): Promise<Measured> {
  return await withModel(TRAINED, async ({ checkpoint, model }) => {
    const context = model.context(TOKENS, "f32");
    const weights = loadBlock(checkpoint, model, BLOCK);
    const inputs = new Stream({ windows, tokens: TOKENS, channels: model.shape.hidden });
    const states = Float32Array.from({ length: TOKENS * model.shape.hidden }, (_, i) => {
      return Math.sin(0.37 * i * i) * (i % 37 === 0 ? 4 : 1);
    });
    for (let n = 0; n < windows; n++) {
      scope(() => inputs.store(n, Tensor.from(states, [1, TOKENS, model.shape.hidden])));
    }
    const problem = {
      index: BLOCK,
      model,
      context,
      scheme: schemeOf({ scheme }),
      kept: new Set(kept),
      inputs,
    };
    const finished = quantizeBlock(problem, weights, [], new Map());
    const stored = storedWeights(finished, problem.scheme.groupSize, () => "f32");
    try {
      const errors = await layerErrors(problem, weights, stored, finished, signal);
      const seen = new Map<string, [Float32Array, Float32Array]>();
      scope(() => {
        forward(model, context, weights, inputs.window(0), (graph) => ({
          apply: (_, name, x: Var, group) => {
            const quantized = tokenQuantizers(problem.scheme, {}).apply(graph, name, x, group);
            const floats = (tensor: Tensor) => tensor.floats() as Float32Array;
            seen.set(name, [floats(x.value.tensor), floats(materialize(quantized.value))]);
            return x;
          },
        }));
      });
      const tables = Object.fromEntries(
        model.linears.map(({ key, in: columns, activation }) => {
          const [w, wq] = [weights[key], stored[key]].map((t) => (t as Tensor).floats());
          const [x, xq] = seen.get(activation) ?? [];
          const y = (a?: ArrayLike<number>, b?: ArrayLike<number>) => products(a, b, columns);
          const exact = y(x, w);
          return [
            key,
            { weight: distance(y(x, wq), exact), activation: distance(y(xq, w), exact) },
          ];
        }),
      );
      return { errors, byHand: (key) => tables[key] as { weight: number; activation: number } };
    } finally {
      disposeAll(stored);
      disposeAll(weights);
      disposeAll(finished.others);
      for (const q of Object.values(finished.quantized)) {
        for (const held of Object.values(q)) held?.dispose();
      }
      inputs.dispose();
      context.dispose();
    }
  });
}

function products(
  x: ArrayLike<number> = [],
  w: ArrayLike<number> = [],
  columns: number,
): Float64Array {
  const [rows, outputs] = [x.length / columns, w.length / columns];
  const y = new Float64Array(rows * outputs);
  for (let t = 0; t < rows; t++) {
    for (let o = 0; o < outputs; o++) {
      let sum = 0;
      for (let i = 0; i < columns; i++) {
        sum += (x[t * columns + i] as number) * (w[o * columns + i] as number);
      }
      y[t * outputs + o] = sum;
    }
  }
  return y;
}

function distance(y: Float64Array, exact: Float64Array): number {
  const squares = (values: Float64Array) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(y.map((value, i) => value - (exact[i] as number))) / squares(exact));
}

describe("errors of layers", () => {
  it.each(["W4A4", "W8A8", "NVFP4", "MXFP4"])(
    "are those of each linear by itself, %s",
    async (scheme) => {
      const live = liveTensors();
      const { errors, byHand } = await measure(scheme);
      expect(liveTensors()).toBe(live);
      expect(Object.keys(errors)).toEqual(["q", "k", "v", "o", "gate", "up", "down"]);
      for (const [key, { weight, activation }] of Object.entries(errors)) {
        const expected = byHand(key);
        expect(weight / expected.weight, key).toBeCloseTo(1, 3);
        expect((activation as number) / expected.activation, key).toBeCloseTo(1, 3);
      }
      expect(errors["down"]?.name).toBe("model.layers.1.mlp.down_proj");
    },
  );

  it("fall with the bits, and are null where inputs are left alone", async () => {
    const [two, four] = [(await measure("W2A16")).errors, (await measure("W4A16")).errors];
    for (const [key, { weight, activation }] of Object.entries(four)) {
      expect(activation).toBeNull();
      expect(weight).toBeGreaterThan(0.01);
      expect(two[key]?.weight).toBeGreaterThan(2 * weight);
    }
  });

  it("leave out what is kept, and inputs that kept linears alone read", async () => {
    const { errors } = await measure("W4A4", { kept: ["down", "v"] });
    expect(Object.keys(errors)).toEqual(["q", "k", "o", "gate", "up"]);
    expect(errors["q"]?.activation).toBeGreaterThan(0);
    const all = ["q", "k", "v", "o", "gate", "up", "down"];
    expect((await measure("W4A4", { kept: all })).errors).toEqual({});
  });

  it("are the same from several windows of the same text", async () => {
    const [one, six] = [await measure("W4A4"), await measure("W4A4", { windows: 6 })];
    for (const [key, { weight }] of Object.entries(one.errors)) {
      expect(six.errors[key]?.weight).toBeCloseTo(weight, 6);
    }
  });

  it("stop on request", async () => {
    const signal = AbortSignal.abort();
    await expectAqRejection(measure("W4A4", { signal }), "AQ_STOPPED", "between two windows");
  });
});
