// How often calibration waits for the device: a GPU stands still while it is read.
import { afterEach, describe, expect, it, vi } from "vitest";
import { disposeParameters } from "../lib/calibration/parameters.ts";
import { passFullPrecision, passQuantized } from "../lib/calibration/passes.ts";
import { affinePhase } from "../lib/calibration/phases/affine.ts";
import { disposeRounding, roundPhase } from "../lib/calibration/phases/round.ts";
import { Stream } from "../lib/calibration/stream.ts";
import type { Streams } from "../lib/calibration/streams.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { withTinyProblem } from "./helpers/tiny-problem.ts";

afterEach(() => vi.restoreAllMocks());

/** Counts every way to read a tensor; `blocking` are those that hold the event loop up. */
function watchReads(): { readonly all: () => number; readonly blocking: () => number } {
  const read = vi.spyOn(Tensor.prototype, "read");
  const item = vi.spyOn(Tensor.prototype, "item");
  const readAsync = vi.spyOn(Tensor.prototype, "readAsync");
  const awaited = (): number => readAsync.mock.calls.length;
  return {
    all: () => awaited() + item.mock.calls.length,
    // On the CPU readAsync reads at once.
    blocking: () => read.mock.calls.length + item.mock.calls.length - awaited(),
  };
}

describe("training", () => {
  it("waits once a step", async () => {
    await withTinyProblem(3, { epochs: 2 }, async (problem) => {
      const reads = watchReads();
      let before = 0;
      const steps: number[] = [];
      const { parameters } = await affinePhase(problem, {
        onStep: () => {
          steps.push(reads.all() - before);
          before = reads.all();
        },
      });
      // Before the first step starts are read from the weights.
      expect(steps.slice(1)).toEqual([1, 1, 1, 1, 1]);
      const folded = { ...problem.weights };
      const clips = parameters.filter(({ group }) => group === "clip");
      before = reads.all();
      steps.length = 0;
      const settings = { ...problem.settings, roundEpochs: 2 };
      const blocking = reads.blocking();
      const round = await roundPhase({ ...problem, settings }, folded, clips, {
        onStep: () => {
          steps.push(reads.all() - before);
          before = reads.all();
        },
      });
      expect(steps).toEqual([1, 1, 1, 1, 1, 1]);
      // What the clipping starts from.
      expect(reads.blocking() - blocking).toBe(clips.length);
      if (round.state) disposeRounding(round.state);
      disposeParameters(parameters);
    });
  });
});

describe("passes", () => {
  it("wait at their ends alone, and let a stop arrive between windows", async () => {
    await withTinyProblem(6, {}, async (problem) => {
      const { model, context, weights, inputs, targets } = problem;
      const shape = { windows: 6, tokens: 5, channels: model.shape.hidden };
      const aug = new Stream(shape);
      const sample = Tensor.empty([1, 5, model.shape.hidden]);
      const streams = { fp: targets, quantized: inputs, aug, sample, windows: 6, keepSample() {} };
      const all = streams as unknown as Streams;
      const reads = watchReads();
      const seen = await passFullPrecision(model, context, weights, all, true, undefined);
      // Three statistics of each activation that has one.
      expect(reads.all()).toBe(3 * seen.max.size);
      const before = reads.all();
      const numbers = { tokenClips: {}, inputGlobals: {} };
      expect(await passQuantized(problem, weights, numbers, all, undefined)).toBeGreaterThan(0);
      expect(reads.all() - before).toBe(1);
      expect(reads.blocking()).toBe(0);
      const stop = new AbortController();
      setImmediate(() => stop.abort());
      const stopped = passFullPrecision(model, context, weights, all, true, stop.signal);
      await expect(stopped).rejects.toMatchObject({ code: "AQ_STOPPED" });
      for (const item of [aug, sample]) item.dispose();
    });
  });
});
