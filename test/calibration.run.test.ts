// What a run computes: it learns, the transforms are equivalences, results do not depend on the
// number of threads, and the products of the loop are the fused ones.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { disposeParameters } from "../lib/calibration/parameters.ts";
import { affinePhase } from "../lib/calibration/phases/affine.ts";
import { loadCalibration } from "../lib/calibration/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { setThreads, threads } from "../lib/tensor/device.ts";
import { kernelCalls } from "../lib/tensor/invoke.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent } from "../lib/types.ts";
import { BOOKS, firstBlocks, TRAINED } from "./helpers/fixture.ts";
import { filesBelow, readJson, SMALL_STEPS, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { withTinyProblem } from "./helpers/tiny-problem.ts";

const tempFolder = tempFolders();

describe("learning", () => {
  it("lowers every block's loss and beats rounding to nearest", async () => {
    const options = { wbits: 3, nsamples: 8, epochs: 6, letLr: 2e-2, lwcLr: 4e-2 };
    const learned = await smallRun({ ...options, out: tempFolder() });
    const rounded = await smallRun({ ...options, out: tempFolder(), recipe: "rtn" });
    const { pplBefore, pplAfter, blocks } = learned.result;
    expect(rounded.result.pplBefore).toBe(pplBefore);
    // Rounding raises the perplexity by half; learning takes a third of that back.
    expect(pplAfter).toBeGreaterThan(pplBefore);
    expect(pplAfter - pplBefore).toBeLessThan(0.75 * (rounded.result.pplAfter - pplBefore));
    for (const [i, { lossFirst, lossLast, streamError, ...report }] of blocks.entries()) {
      expect(lossLast, `block ${i}`).toBeLessThan(0.97 * (lossFirst as number));
      expect(streamError).toBeLessThan(rounded.result.blocks[i]?.streamError as number);
      expect(report).toMatchObject({ skippedSteps: 0, fallback: null });
      expect(report.equivalence).toBeLessThan(1e-5);
      expect(report.equivalenceStored).toBeLessThan(1e-2);
      expect(report.dominanceMargin).toBeGreaterThan(0);
      expect(report.dominanceMargin).toBeLessThanOrEqual(1);
    }
    for (const report of rounded.result.blocks) {
      expect(report).toMatchObject({ lossFirst: null, lossLast: null, equivalence: null });
      expect(report).toMatchObject({ dominanceMargin: null, equivalenceStored: null });
    }
  });

  it("of clipping alone folds nothing", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const options = { wbits: 3, epochs: 6, lwcLr: 4e-2 };
    const { result } = await smallRun({ ...options, model, out: tempFolder(), recipe: "lwc-only" });
    const [block] = result.blocks;
    expect(block).toMatchObject({ equivalence: null, dominanceMargin: null, fallback: null });
    expect(block?.lossLast).toBeLessThan(block?.lossFirst as number);
  });

  it("of no epoch at all is rounding to nearest", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const [none, rtn] = [tempFolder(), tempFolder()];
    await smallRun({ model, out: none, epochs: 0, wbits: 3 });
    await smallRun({ model, out: rtn, recipe: "rtn", wbits: 3 });
    const weights = [none, rtn].map((dir) => fs.readFileSync(path.join(dir, "model.safetensors")));
    expect(weights[0]?.equals(weights[1] as Buffer)).toBe(true);
  });
});

/** Removes what may differ between equal runs: the seconds they took. */
function withoutSeconds(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (key, x) => (/seconds$/i.test(key) ? undefined : x)));
}

describe("the result", () => {
  it("is the same, byte for byte, for one thread and for two", async () => {
    const before = threads();
    const options = { wbits: 4, abits: 4, groupSize: 64, sampling: "random", seed: 7 } as const;
    const runs: { out: string; ppl: readonly number[]; losses: readonly number[] }[] = [];
    for (const count of [1, 2]) {
      const out = tempFolder();
      const { result, events } = await smallRun({ ...options, out, threads: count });
      expect(threads()).toBe(count);
      const losses = events.flatMap((event) => (event.event === "step" ? [event.loss] : []));
      runs.push({ out, ppl: [result.pplBefore, result.pplAfter], losses });
    }
    setThreads(before);
    const [one, two] = runs as [(typeof runs)[number], (typeof runs)[number]];
    expect(two.losses).toEqual(one.losses);
    expect(two.ppl).toEqual(one.ppl);
    // The reports tell of seconds, threads and the moment.
    const [files, others] = [one, two].map(({ out }) =>
      filesBelow(out).filter((file) => !file.startsWith("aq/report.")),
    ) as [string[], string[]];
    expect(files).toContain("aq/blocks/block-0003.safetensors");
    expect(others).toEqual(files);
    for (const file of files) {
      if (file === "aq/job.json") {
        const [a, b] = runs.map(({ out }) => withoutSeconds(readJson(out, file)));
        expect(a).toEqual(b);
      } else {
        const [a, b] = runs.map(({ out }) => fs.readFileSync(path.join(out, file)));
        expect(a?.equals(b as Buffer), file).toBe(true);
      }
    }
  });

  it("of random sampling follows from the seed", () => {
    const tokenizer = loadTokenizer(TRAINED);
    const windows = (seed: number): number[][] =>
      loadCalibration(BOOKS, tokenizer, 32, {
        nsamples: 5,
        calibSource: "text",
        sampling: "random",
        seed,
      }).calibration.map((window) => [...window]);
    expect(windows(3)).toEqual(windows(3));
    expect(windows(3)).not.toEqual(windows(4));
  });
});

/** How often each op ran in the training phases of a run, and in all of it. */
async function countOps(options: { readonly abits?: number; readonly wbits: number }) {
  const model = firstBlocks(tempFolder(), 2);
  const training: Record<string, number> = {};
  const first = kernelCalls("cpu");
  let start: Record<string, number> | undefined;
  const onEvent = (event: QuantizeEvent): void => {
    if (event.event !== "phase") return;
    if (event.phase === "affine") start = kernelCalls("cpu");
    if (event.phase !== "fold" || !start) return;
    for (const [op, count] of Object.entries(kernelCalls("cpu"))) {
      training[op] = (training[op] ?? 0) + count - (start[op] as number);
    }
  };
  await smallRun({ ...options, model, out: tempFolder() }, { onEvent });
  const steps = 2 * SMALL_STEPS;
  const perStep = Object.fromEntries(Object.entries(training).map(([op, n]) => [op, n / steps]));
  const materialized =
    (kernelCalls("cpu")["fake_quant"] as number) - (first["fake_quant"] as number);
  return { perStep, materialized };
}

describe("the operations of a step", () => {
  it("are seven fused products, each with both gradients", async () => {
    const { perStep, materialized } = await countOps({ wbits: 4 });
    expect(perStep).toMatchObject({ fake_quant_gemm: 21, masked_adam: 1, attention: 1, mse: 1 });
    expect(perStep["lu_inverse"]).toBeGreaterThanOrEqual(1);
    // Transforms and clipping have rates of their own.
    expect(perStep).toMatchObject({ adam: 2, all_finite: 1 });
    expect(materialized).toBe(0);
  });

  it("are no more products when activations are quantized too", async () => {
    const { perStep, materialized } = await countOps({ wbits: 2, abits: 4 });
    expect(perStep).toMatchObject({ fake_quant_gemm: 21, masked_adam: 1, attention: 1, mse: 1 });
    expect(perStep["quant_grid"]).toBe(7 + 7);
    // Transforms and clipping have rates of their own.
    expect(perStep).toMatchObject({ adam: 2, all_finite: 1 });
    expect(materialized).toBe(0);
  });

  it("add a product for each bias that a site is folded into", async () => {
    await withTinyProblem(2, { epochs: 2 }, async (problem) => {
      const [before, live] = [kernelCalls("cpu"), liveTensors()];
      const training = await affinePhase(problem, {});
      const products =
        (kernelCalls("cpu")["fake_quant_gemm"] as number) - (before["fake_quant_gemm"] as number);
      // Biases of q, k, v and up.
      expect(products / 4).toBe(21 + 4);
      expect(training.margin).toBeGreaterThan(0);
      disposeParameters(training.parameters);
      expect(liveTensors()).toBe(live);
    });
  });
});

describe("the second loss", () => {
  it("is added to the first", async () => {
    const first = await withTinyProblem(1, { epochs: 1 }, async (problem) => {
      const losses = [undefined, problem.targets, problem.inputs].map(async (augTargets) => {
        const training = await affinePhase({ ...problem, augTargets }, {});
        disposeParameters(training.parameters);
        return training.losses[0] as number;
      });
      return Promise.all(losses);
    });
    const [alone, twice, other] = first as [number, number, number];
    expect(twice / alone).toBeCloseTo(2, 6);
    expect(other).toBeGreaterThan(2 * alone);
  });
});

describe("the events of a run", () => {
  it("tell of every block, phase, epoch and window, in order", async () => {
    const model = firstBlocks(tempFolder(), 2);
    const out = tempFolder();
    const { result, events } = await smallRun({ model, out, wbits: 4 });
    const at = (name: string) => events.findIndex(({ event }) => event === name);
    expect(events[0]).toMatchObject({
      event: "start",
      blocks: 2,
      windows: 3,
      seqlen: 64,
      wbits: 4,
    });
    expect(events.at(-1)).toEqual({ event: "done", ...result });
    expect(at("note")).toBeLessThan(at("eval"));
    expect(events.flatMap((e) => (e.event === "phase" ? [`${e.block} ${e.phase}`] : []))).toEqual(
      [0, 1].flatMap((block) =>
        ["statistics", "affine", "fold", "propagate", "write"].map((p) => `${block} ${p}`),
      ),
    );
    const steps = events.flatMap((e) => (e.event === "step" ? [[e.block, e.epoch, e.step]] : []));
    expect(steps).toEqual(
      [0, 1].flatMap((block) => [1, 2, 3, 4, 5, 6].map((n) => [block, n > 3 ? 1 : 0, n])),
    );
    const epochs = events.filter((event) => event.event === "epoch");
    expect(epochs.map(({ block, epoch }) => [block, epoch])).toEqual([
      [0, 0],
      [0, 1],
      [1, 0],
      [1, 1],
    ]);
    expect(epochs.map(({ loss }) => loss).filter((_, i) => i % 2 === 1)).toEqual(
      result.blocks.map(({ lossLast }) => lossLast),
    );
    for (const event of events) {
      if (event.event !== "step" || event.secondsLeft === null) continue;
      expect(event.secondsLeft).toBeGreaterThanOrEqual(0);
    }
    const windows = events.filter((event) => event.event === "eval");
    expect(windows.map(({ which }) => which)).toEqual(
      ["before", "after"].flatMap((which) => Array.from({ length: 16 }, () => which)),
    );
  });
});
