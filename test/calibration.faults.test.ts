// A run never stops because training fails: what is not finite is skipped, a block that keeps failing
// starts again at lower rates, and in the end it is rounded to nearest.
import { describe, expect, it } from "vitest";
import type { TrainHooks } from "../lib/calibration/attempts.ts";
import { disposeParameters } from "../lib/calibration/parameters.ts";
import { affinePhase } from "../lib/calibration/phases/affine.ts";
import type { BlockProblem } from "../lib/calibration/problem.ts";
import type { GradientWatcher } from "../lib/calibration/train-step.ts";
import { evaluate } from "../lib/evaluate.ts";
import { readAqConfig } from "../lib/export/aq-config.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { BOOKS } from "./helpers/fixture.ts";
import { readJson, SMALL_STEPS, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { withTinyProblem } from "./helpers/tiny-problem.ts";

const tempFolder = tempFolders();

/** Writes a value over the last element of a gradient. */
function spoil(gradient: Tensor, value: number): void {
  gradient.write(Float32Array.of(value), 4 * (gradient.size - 1));
}

/** Makes the first state of an input window NaN. */
function spoilWindow({ inputs }: BlockProblem, n: number): void {
  scope(() => {
    const states = Tensor.from(inputs.window(n).floats(), inputs.window(n).shape);
    states.write(Float32Array.of(Number.NaN));
    inputs.store(n, states);
  });
}

interface Trained {
  readonly fallback: string | null;
  readonly skippedSteps: number;
  readonly losses: readonly number[];
  /** Values by parameter name. */
  readonly values: ReadonlyMap<string, Float32Array>;
  readonly notes: readonly string[];
  /** Losses of the steps, in order, over all attempts. */
  readonly steps: readonly number[];
}

async function train(problem: BlockProblem, hooks: TrainHooks = {}): Promise<Trained> {
  const notes: string[] = [];
  const steps: number[] = [];
  const training = await affinePhase(problem, {
    ...hooks,
    onNote: (text) => notes.push(text),
    onStep: (_epoch, _step, _steps, loss) => steps.push(loss),
  });
  const values = new Map(training.parameters.map((p) => [p.name, p.value.floats()]));
  disposeParameters(training.parameters);
  const { skippedSteps, losses } = training;
  const fallback = training.failed ? "rtn" : training.fallback;
  return { fallback, skippedSteps, losses, values, notes, steps };
}

/** Spoils one gradient in each of the first `count` steps, another one every time. */
function spoilFirst(count: number, value = Number.NaN): GradientWatcher {
  let calls = 0;
  return (gradients) => {
    if (calls >= count) return;
    const names = [...gradients.keys()];
    spoil(gradients.get(names[calls % names.length] as string) as Tensor, value);
    calls++;
  };
}

/** Largest change that one training made beyond another, over one parameter's elements. */
function moved(name: string, a: Trained, b: Trained): number {
  const [x, y] = [a.values.get(name), b.values.get(name)];
  return Math.max(...Array.from(x ?? [], (value, i) => Math.abs(value - (y?.[i] ?? Number.NaN))));
}

describe("a step with a gradient that is not finite", () => {
  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "changes nothing: %d",
    async (value) => {
      await withTinyProblem(1, { epochs: 2 }, async (problem) => {
        const untouched = await train(problem, { watch: spoilFirst(2, value) });
        expect(untouched).toMatchObject({ fallback: null, skippedSteps: 2, losses: [NaN, NaN] });
        const trained = await train(problem);
        expect(trained).toMatchObject({ fallback: null, skippedSteps: 0, notes: [] });
        expect(untouched.values.size).toBe(13);
        // Both steps saw the same start, and every parameter would have moved.
        expect(untouched.steps[0]).toBe(untouched.steps[1]);
        for (const name of untouched.values.keys()) {
          expect(moved(name, trained, untouched), name).toBeGreaterThan(1e-4);
        }
      });
    },
  );

  it("is left out of the mean loss and told with its number", async () => {
    await withTinyProblem(3, { epochs: 1 }, async (problem) => {
      const { losses, steps, notes, skippedSteps } = await train(problem, { watch: spoilFirst(1) });
      expect(skippedSteps).toBe(1);
      expect(losses).toEqual([((steps[1] as number) + (steps[2] as number)) / 2]);
      expect(notes).toEqual(["block 0, affine: step 1 of 3 was not finite and is skipped"]);
    });
  });

  it("is found in whatever parameter it is", async () => {
    await withTinyProblem(1, { epochs: 1, abits: 4 }, async (problem) => {
      const names: string[] = [];
      await train(problem, { watch: (gradients) => names.push(...gradients.keys()) });
      expect(names).toHaveLength(6 + 7 + 7);
      for (const name of names) {
        const watch: GradientWatcher = (gradients) => spoil(gradients.get(name) as Tensor, NaN);
        expect((await train(problem, { watch })).skippedSteps, name).toBe(1);
      }
    });
  });
});

describe("a block that keeps failing", () => {
  it("starts again at half the rate, then at a quarter", async () => {
    await withTinyProblem(3, { epochs: 1 }, async (problem) => {
      // The last of three steps alone counts: a first step of Adam, at the same start and mask, whose
      // length is its rate. Three failures end an attempt before that.
      const start = await train({
        ...problem,
        settings: { ...problem.settings, letLr: 0, lwcLr: 0 },
      });
      const [full, half, quarter] = [
        await train(problem, { watch: spoilFirst(2) }),
        await train(problem, { watch: spoilFirst(5) }),
        await train(problem, { watch: spoilFirst(8) }),
      ];
      expect([full.fallback, full.skippedSteps]).toEqual([null, 2]);
      expect([half.fallback, half.skippedSteps]).toEqual(["half-rate", 5]);
      expect([quarter.fallback, quarter.skippedSteps]).toEqual(["quarter-rate", 8]);
      for (const name of start.values.keys()) {
        const step = moved(name, full, start);
        expect(moved(name, half, start) / step, name).toBeCloseTo(0.5, 2);
        expect(moved(name, quarter, start) / step, name).toBeCloseTo(0.25, 2);
      }
      expect(half.notes.at(3)).toBe(
        "block 0, affine: 3 steps were not finite; starting again at half the rate",
      );
      expect(quarter.notes.at(7)).toBe(
        "block 0, affine: 3 steps were not finite; starting again at a quarter of the rate",
      );
    });
  });

  it("is rounded to nearest after the third attempt", async () => {
    const live = liveTensors();
    await withTinyProblem(3, { epochs: 2 }, async (problem) => {
      const { fallback, skippedSteps, losses, values, notes } = await train(problem, {
        watch: spoilFirst(99),
      });
      expect({ fallback, skippedSteps, losses }).toEqual({
        fallback: "rtn",
        skippedSteps: 9,
        losses: [],
      });
      expect(values.size).toBe(0);
      expect(notes.at(-1)).toBe("block 0, affine: 3 steps were not finite; rounding it to nearest");
    });
    expect(liveTensors()).toBe(live);
  });

  it("may fail by its loss: inputs that are not finite are no different", async () => {
    await withTinyProblem(3, { epochs: 2 }, async (problem) => {
      spoilWindow(problem, 0);
      let seen = 0;
      const watch = (): void => {
        seen++;
      };
      const once = await train(problem, { watch });
      // The first of three windows, in both epochs: skipped, and never differentiated.
      expect(once).toMatchObject({ fallback: null, skippedSteps: 2 });
      expect(seen).toBe(4);
      expect(once.losses.every(Number.isFinite)).toBe(true);
      for (let n = 0; n < problem.inputs.windows; n++) spoilWindow(problem, n);
      expect(await train(problem)).toMatchObject({ fallback: "rtn", skippedSteps: 9 });
    });
  });
});

describe("a whole run with failing blocks", () => {
  it("goes on, says what it did, and writes a model that works", async () => {
    const out = tempFolder();
    // Block 0 skips a step, 1 needs half the rate, 2 a quarter, and 3 never works.
    const failures = [1, 3, 6, Number.POSITIVE_INFINITY].map((count) => spoilFirst(count));
    let block = -1;
    const { result, events, notes } = await smallRun(
      { out, wbits: 4, abits: 8 },
      {
        onEvent: (event) => {
          if (event.event === "phase") block = event.block;
        },
        watch: (gradients, step) => failures[block]?.(gradients, step),
      },
    );
    expect(result.blocks.map(({ fallback }) => fallback)).toEqual([
      null,
      "half-rate",
      "quarter-rate",
      "rtn",
    ]);
    expect(result.blocks.map(({ skippedSteps }) => skippedSteps)).toEqual([1, 3, 6, 9]);
    for (const { fallback, lossLast, equivalence, dominanceMargin } of result.blocks) {
      const trained = fallback !== "rtn";
      for (const value of [lossLast, equivalence, dominanceMargin]) {
        expect(value === null ? null : Number.isFinite(value)).toBe(trained ? true : null);
      }
    }
    const said = (pattern: RegExp): number => notes.filter((note) => pattern.test(note)).length;
    expect(said(/is skipped$/)).toBe(1 + 3 + 6 + 9);
    expect(said(/^block [123], affine: .* starting again at half the rate$/)).toBe(3);
    expect(said(/^block [23], affine: .* starting again at a quarter of the rate$/)).toBe(2);
    expect(said(/^block 3, affine: .* rounding it to nearest$/)).toBe(1);
    const reports = events.filter((event) => event.event === "block");
    expect(reports.map(({ fallback }) => fallback)).toEqual(
      result.blocks.map(({ fallback }) => fallback),
    );
    expect(events.filter(({ event }) => event === "step")).toHaveLength(
      // Attempts end after the third skipped step, which is not an event of its own.
      SMALL_STEPS + (SMALL_STEPS + 2) + (SMALL_STEPS + 4) + 6,
    );

    expect(readJson(out, "aq", "job.json")).toMatchObject({
      status: "done",
      result: { blocks: [{ fallback: null }, {}, {}, { fallback: "rtn", lossFirst: null }] },
    });
    const clips = readAqConfig(out)?.tokenClips.map((logits) => Object.keys(logits).length);
    expect(clips).toEqual([7, 7, 7, 0]);
    const { ppl } = await evaluate({ model: out, text: BOOKS, seqlen: 64, windows: 4 });
    for (const value of [ppl, result.pplAfter]) {
      expect(value).toBeGreaterThan(10);
      expect(value).toBeLessThan(200);
    }
  });
});
