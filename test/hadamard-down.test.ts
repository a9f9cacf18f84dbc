// The transform before down: the same function before anything is quantized, written so that only this
// package runs it, and applied when the folder is evaluated.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Rotation } from "../lib/affine/rotation.ts";
import { siteName } from "../lib/affine/sites.ts";
import { Eager } from "../lib/autograd/graph.ts";
import { forward } from "../lib/calibration/passes.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { embedWindow, forwardLogits, logitsOf } from "../lib/eval/perplexity.ts";
import { evaluate } from "../lib/evaluate.ts";
import { readAqConfig } from "../lib/export/aq-config.ts";
import { hadamardJson, readHadamard } from "../lib/export/hadamard-json.ts";
import { inspect } from "../lib/inspect.ts";
import { randomHadamard } from "../lib/models/hadamard-down.ts";
import { disposeAll } from "../lib/models/load.ts";
import { openModel } from "../lib/models/registry.ts";
import { weightSource } from "../lib/models/source.ts";
import { passThrough } from "../lib/quant/tokens.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, TRAINED, tinyFixture, tinyFixtures, withModel } from "./helpers/fixture.ts";
import { type Run, readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();

/** Largest difference of logits, measured by the largest of them. */
function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    difference = Math.max(difference, Math.abs((a[i] as number) - (b[i] as number)));
    largest = Math.max(largest, Math.abs(a[i] as number));
  }
  return difference / largest;
}

/** Logits of the weights as a run starts from them, nothing quantized. */
function startLogits(dir: string, ids: Int32Array, rotate: boolean): Float32Array {
  const checkpoint = openCheckpoint(dir);
  const has = (name: string): boolean => checkpoint.has(name);
  const { mlp } = openModel(checkpoint.config, has).shape;
  const model = openModel(checkpoint.config, has, { hadamardDown: randomHadamard(mlp, 3) });
  expect(model.sites.map(siteName)).not.toContain("updown");
  const rotation = rotate ? new Rotation(model, 3) : null;
  const source = weightSource(checkpoint, model, rotation);
  const context = model.context(ids.length, "f32");
  try {
    return scope(() => {
      const outer = source.loadOuter();
      let x = embedWindow(model, outer, ids);
      for (let i = 0; i < model.shape.blocks; i++) {
        x = forward(model, context, source.loadBlock(i), x, () => passThrough);
      }
      return { logits: logitsOf(model, outer, x).floats() };
    }).logits;
  } finally {
    context.dispose();
    rotation?.dispose();
    checkpoint.close();
  }
}

describe("the transform and its inverse in the weights", () => {
  it.each(["trained", ...tinyFixtures()])("leave the logits of %s as they were", (name) => {
    const dir = name === "trained" ? TRAINED : tinyFixture(name);
    const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 7) % 60);
    const live = liveTensors();
    const expected = withModel(dir, (model) => forwardLogits(model, ids));
    for (const rotate of [false, true]) {
      expect(apart(expected, startLogits(dir, ids, rotate))).toBeLessThan(1e-4);
    }
    expect(liveTensors()).toBe(live);
  });

  it("are part of the block: without the transform the folded weights compute something else", () => {
    const has = (): boolean => true;
    const config = readJson(TRAINED, "config.json");
    const plain = openModel(config, has);
    const { mlp } = plain.shape;
    expect(plain.hadamardDown).toBeNull();
    const wrong = { hadamardDown: randomHadamard(mlp / 2, 0) };
    expectAqError(() => openModel(config, has, wrong), "AQ_MODEL", String(mlp / 2), String(mlp));
    const model = openModel(config, has, { hadamardDown: randomHadamard(mlp, 0) });
    const context = model.context(4, "f32");
    expect(context.hadamardDown?.odd?.shape).toEqual([11, 11]);
    context.dispose();
  });

  it("come from the seed", () => {
    const signs = (seed: number) => [...randomHadamard(64, seed).signs];
    expect(signs(1)).toEqual(signs(1));
    expect(signs(1)).not.toEqual(signs(2));
    expect(new Set(signs(1))).toEqual(new Set([1, -1]));
  });
});
