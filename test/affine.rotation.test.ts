// Rotating the residual stream changes no function: orthogonal matrices, and whole models.
import { describe, expect, it } from "vitest";
import {
  onesKeepingOrthogonal,
  randomOrthogonal,
  type Square,
  signedHadamard,
} from "../lib/affine/orthogonal.ts";
import { Rotation } from "../lib/affine/rotation.ts";
import { runBlock } from "../lib/calibration/finish-block.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { embedWindow, logitsOf } from "../lib/eval/perplexity.ts";
import { disposeAll } from "../lib/models/load.ts";
import { openModel } from "../lib/models/registry.ts";
import { weightSource } from "../lib/models/source.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { createRandom } from "../lib/util/random.ts";

/** Largest entry of |Q Qt - I|. */
function distanceFromOrthogonal({ n, data }: Square): number {
  let worst = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      let dot = 0;
      for (let k = 0; k < n; k++) dot += (data[i * n + k] ?? 0) * (data[j * n + k] ?? 0);
      worst = Math.max(worst, Math.abs(dot - (i === j ? 1 : 0)));
    }
  }
  return worst;
}

describe("orthogonal matrices", () => {
  it.each([1, 2, 3, 8, 12, 33, 64])("are orthogonal at size %i", (n) => {
    expect(distanceFromOrthogonal(randomOrthogonal(n, createRandom(1)))).toBeLessThan(1e-12);
    expect(distanceFromOrthogonal(signedHadamard(n, createRandom(2)))).toBeLessThan(1e-12);
    expect(distanceFromOrthogonal(onesKeepingOrthogonal(n, createRandom(3)))).toBeLessThan(1e-12);
  });

  it("of Hadamard type spread one channel evenly", () => {
    const { data } = signedHadamard(64, createRandom(5));
    for (const value of data) expect(Math.abs(value)).toBeCloseTo(1 / 8, 12);
  });

  it("that keep the ones vector do, on both sides", () => {
    const { n, data } = onesKeepingOrthogonal(24, createRandom(7));
    for (let i = 0; i < n; i++) {
      let row = 0;
      let column = 0;
      for (let j = 0; j < n; j++) {
        row += data[i * n + j] ?? 0;
        column += data[j * n + i] ?? 0;
      }
      expect(row).toBeCloseTo(1, 11);
      expect(column).toBeCloseTo(1, 11);
    }
  });

  it("depend on the seed alone", () => {
    const draw = (seed: number) => signedHadamard(12, createRandom(seed)).data;
    expect(draw(4)).toEqual(draw(4));
    expect(draw(4)).not.toEqual(draw(5));
  });
});

/** Logits of a fixture in the basis of a source. */
function logits(dir: string, seed: number | null): Float32Array {
  const checkpoint = openCheckpoint(dir);
  const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
  const rotation = seed === null ? null : new Rotation(model, seed);
  const source = weightSource(checkpoint, model, rotation);
  const ids = Int32Array.from({ length: 32 }, (_, i) => (i * 7 + 3) % model.shape.vocabulary);
  const outer = source.loadOuter();
  const context = model.context(ids.length, "f32");
  try {
    let state = embedWindow(model, outer, ids);
    for (let i = 0; i < model.shape.blocks; i++) {
      const weights = source.loadBlock(i);
      const next = scope(() => runBlock(model, context, weights, state));
      disposeAll(weights);
      state.dispose();
      state = next;
    }
    return scope(() => {
      const flat = state.reshape([ids.length, model.shape.hidden]);
      return { data: logitsOf(model, outer, flat).floats(), done: state.dispose() };
    }).data;
  } finally {
    disposeAll(outer);
    context.dispose();
    rotation?.dispose();
    checkpoint.close();
  }
}

function relative(x: Float32Array, y: Float32Array): number {
  let apart = 0;
  let size = 0;
  for (const [i, value] of x.entries()) {
    apart += (value - (y[i] ?? Number.NaN)) ** 2;
    size += value ** 2;
  }
  return Math.sqrt(apart / size);
}

describe("a rotated model", () => {
  it.each(["llama-gqa-4m", "tiny/biases", "tiny/untied", "tiny/head-dim", "opt-5m"])(
    "has the logits of its source: %s",
    (name) => {
      const live = liveTensors();
      const dir = `test/fixtures/${name}`;
      const plain = logits(dir, null);
      expect(relative(plain, logits(dir, 1))).toBeLessThan(1e-5);
      expect(relative(plain, logits(dir, 2))).toBeLessThan(1e-5);
      expect(liveTensors()).toBe(live);
    },
  );
});
