// Polish: it never leaves the model further from full precision than it was, on the windows held back;
// what it says is what was written; and a session that goes on ends in the same bytes.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { checkPolish, heldBackWindows, polishBytes } from "../lib/calibration/polish-memory.ts";
import { polishRates } from "../lib/calibration/polish-training.ts";
import { resolveSettings } from "../lib/calibration/settings.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { readAqConfig } from "../lib/export/aq-config.ts";
import { inspect } from "../lib/inspect.ts";
import { openModel } from "../lib/models/registry.ts";
import type { invoke } from "../lib/tensor/invoke.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { PolishReport, QuantizeEvent, QuantizeOptions } from "../lib/types.ts";
import { interrupt, quantizeArgs, runCommand } from "./helpers/command.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, firstBlocks, withModel } from "./helpers/fixture.ts";
import { expectSameResult, filesBelow, type Run, readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const SETTINGS = { recipe: "default", wbits: 2, abits: 4, nsamples: 6, polish: 3 } as const;

let temp = "";
let model = "";
let whole = "";
let plain = "";
let wholeRun: Run;
let plainRun: Run;

beforeAll(async () => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  [model, whole, plain] = ["model", "whole", "plain"].map((name) => path.join(temp, name)) as [
    string,
    string,
    string,
  ];
  fs.mkdirSync(model);
  firstBlocks(model, 2);
  const live = liveTensors();
  wholeRun = await smallRun({ ...SETTINGS, model, out: whole });
  expect(liveTensors()).toBe(live);
  plainRun = await smallRun({ ...SETTINGS, model, out: plain, polish: 0 });
}, 120_000);

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

function reportOf({ result }: Run): PolishReport {
  expect(result.polish).toBeDefined();
  return result.polish as PolishReport;
}

/** Mean KL divergence of a written folder from the source, over the last `held` windows, in float64. */
function divergenceOf(out: string, held: number): number {
  const ids = loadTokenizer(model).encode(readTextFile(BOOKS));
  const windows = sequentialWindows(ids, 64, SETTINGS.nsamples).slice(-held);
  const clips = readAqConfig(out)?.tokenClips ?? [];
  const each = windows.map((window) => {
    const full = withModel(model, (source) => forwardLogits(source, window));
    const low = withModel(out, (source) =>
      forwardLogits({ ...source, activations: { bits: 4, clips } }, window),
    );
    return meanKl(low, full, window.length);
  });
  return each.reduce((sum, x) => sum + x, 0) / each.length;
}

function meanKl(student: Float32Array, teacher: Float32Array, rows: number): number {
  const width = student.length / rows;
  let total = 0;
  for (let row = 0; row < rows; row++) {
    const [q, p] = [student, teacher].map((x) =>
      logSoftmax(x.subarray(row * width, (row + 1) * width)),
    );
    for (let v = 0; v < width; v++) {
      const [a, b] = [q?.[v] as number, p?.[v] as number];
      total += Math.exp(b) * (b - a);
    }
  }
  return total / rows;
}

function logSoftmax(row: Float32Array): Float64Array {
  const max = row.reduce((a, b) => Math.max(a, b));
  const log = Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0)) + max;
  return Float64Array.from(row, (x) => x - log);
}

describe("polish", () => {
  it("keeps the best of the start and all epochs, and says how it was found", () => {
    const report = reportOf(wholeRun);
    expect(report).toMatchObject({ windows: 4, heldBack: 2, skippedSteps: 0 });
    expect(report.losses).toHaveLength(3);
    expect(report.divergence).toHaveLength(4);
    expect(report.divergence[report.kept]).toBe(Math.min(...report.divergence));
    expect(report.kept).toBeGreaterThan(0);
    expect(wholeRun.notes.some((note) => note.startsWith("polish: the divergence"))).toBe(true);
    const events = wholeRun.events.flatMap((e) => (e.event === "polish" ? [e] : []));
    const ends = events.filter(({ divergence }) => divergence !== null);
    expect(ends.map(({ epoch, divergence }) => [epoch, divergence])).toEqual(
      report.divergence.map((value, i) => [i - 1, value]),
    );
    expect(events.filter(({ divergence }) => divergence === null)).toHaveLength(12);
    expect(readJson(whole, "aq/report.json")["curves"]).toMatchObject([
      { values: report.divergence },
    ]);
  });

  it("measures what is written: the start is the unpolished output, the end the polished one", () => {
    const { divergence, kept, heldBack } = reportOf(wholeRun);
    const [before, after] = [divergenceOf(plain, heldBack), divergenceOf(whole, heldBack)];
    expect((divergence[0] as number) / before).toBeCloseTo(1, 4);
    expect((divergence[kept] as number) / after).toBeCloseTo(1, 4);
    expect(after).toBeLessThan(before);
    // The blocks themselves are calibrated as without it.
    const errors = ({ result }: Run) => result.blocks.map(({ streamError }) => streamError);
    expect(errors(wholeRun)).toEqual(errors(plainRun));
  });

  it("leaves the run folder without what it started from", () => {
    const blocks = (set: string) => [0, 1].map((i) => `aq/${set}/block-000${i}.safetensors`);
    const stored = filesBelow(whole).filter((file) => file.includes("block-"));
    expect(stored).toEqual([...blocks("blocks"), ...blocks("polished")]);
  });

  it.each([
    ["a training that ruins the model", (g: number) => -1e4 * g],
    ["gradients that are not finite", () => Number.NaN],
  ])("is undone where it does not help: %s", async (name, change) => {
    const out = tempFolder();
    const spoil = (gradients: ReadonlyMap<string, Parameters<typeof invoke>[1][number]>): void => {
      for (const [parameter, g] of gradients) {
        // Names of all blocks' parameters begin with the block's number.
        if (g && /^\d+\./.test(parameter)) g.write(g.floats().map(change));
      }
    };
    const run = await smallRun({ ...SETTINGS, model, out }, { watch: spoil });
    const { divergence, kept, skippedSteps } = reportOf(run);
    expect(divergence[kept]).toBe(Math.min(...divergence));
    if (name.includes("finite")) {
      expect(skippedSteps).toBe(3);
      expect(run.notes.some((note) => note.includes("training ends"))).toBe(true);
    }
    expect(kept).toBe(0);
    expect(run.notes.some((note) => note.includes("the blocks stay as they were"))).toBe(true);
    expectSameResult(out, plain);
  });
});

type Moment = (event: QuantizeEvent) => boolean;

/** Runs until an event for which `moment` holds, and stops there. */
async function stopAt(out: string, moment: Moment): Promise<void> {
  const stop = new AbortController();
  const onEvent = (event: QuantizeEvent): void => {
    if (moment(event)) stop.abort();
  };
  const run = smallRun({ ...SETTINGS, model, out }, { onEvent, signal: stop.signal });
  await expectAqRejection(run, "AQ_STOPPED", "2 of 2 blocks are stored");
}

describe("a run that is stopped", () => {
  it.each<[string, Moment]>([
    ["before polish", (e) => e.event === "stage" && e.stage === "polish"],
    ["in its first epoch", (e) => e.event === "polish" && e.step === 2],
    ["after its second", (e) => e.event === "polish" && e.epoch === 1 && e.divergence !== null],
    ["behind it", (e) => e.event === "stage" && e.stage === "export"],
  ])("%s goes on to the same bytes", async (name, moment) => {
    const out = tempFolder();
    const live = liveTensors();
    await stopAt(out, moment);
    expect(liveTensors()).toBe(live);
    const isPolished = name === "behind it";
    const left = inspect({ model: out }).run?.left ?? [];
    expect(left.includes("polish all blocks")).toBe(!isPolished);
    const { events } = await smallRun({ ...SETTINGS, model, out, threads: 1 });
    expect(events.some((e) => e.event === "polish")).toBe(!isPolished);
    expect(events.some((e) => e.event === "block")).toBe(false);
    expectSameResult(out, whole);
    await smallRun({ ...SETTINGS, model, out, threads: 2 });
  });

  it("by kill -9, in polish, goes on to the same bytes", async () => {
    const out = tempFolder();
    const { wbits, abits, nsamples, polish } = SETTINGS;
    const args = quantizeArgs({ model, calib: BOOKS, out, wbits, abits, nsamples, polish });
    // The first epoch's end may have stored a better state already.
    for (const moment of [1, 5, 9]) {
      const inPolish: Moment = (e) => e.event === "polish" && e.step >= moment;
      const { signal } = await interrupt(args, "SIGKILL", inPolish);
      expect(signal).toBe("SIGKILL");
    }
    expect(runCommand(...args).code).toBe(0);
    expectSameResult(out, whole);
  });

  it("computes again what is damaged", async () => {
    const out = tempFolder();
    await stopAt(out, (e) => e.event === "stage" && e.stage === "polish");
    fs.appendFileSync(path.join(out, "aq/polish/block-0001.safetensors"), "x");
    const { notes, events } = await smallRun({ ...SETTINGS, model, out });
    expect(notes.some((note) => /polish.block-0001.*going on from block 2/.test(note))).toBe(true);
    expect(events.flatMap((e) => (e.event === "block" ? [e.block] : []))).toEqual([1]);
    expectSameResult(out, whole);
    // Without the polished blocks and without what they came from everything is done anew.
    fs.rmSync(path.join(out, "config.json"));
    fs.rmSync(path.join(out, "aq/polished/block-0000.safetensors"));
    const again = await smallRun({ ...SETTINGS, model, out });
    expect(again.notes.some((note) => note.includes("polishing again"))).toBe(true);
    expectSameResult(out, whole);
  });

  it("is another run with another number of epochs", async () => {
    const other = smallRun({ ...SETTINGS, model, out: whole, polish: 2 });
    await expectAqRejection(other, "AQ_ARG", "setting polish was 3 and is now 2");
  });
});

describe("polish is refused", () => {
  it("after gptq, and with too few windows, before any work", async () => {
    const out = path.join(tempFolder(), "out");
    const gptq = smallRun({ ...SETTINGS, model, out, rounding: "gptq" });
    await expectAqRejection(gptq, "AQ_ARG", "gptq", "--rounding");
    const few = smallRun({ ...SETTINGS, model, out, nsamples: 2 });
    await expectAqRejection(few, "AQ_ARG", "2 windows", "--nsamples");
    expect(fs.existsSync(out)).toBe(false);
  });

  it("where memory does not suffice, with both sizes", () => {
    const options: QuantizeOptions = { model, out: "o", wbits: 4, abits: 4, polish: 1 };
    const settings = resolveSettings(options);
    const checkpoint = openCheckpoint(model);
    const opened = openModel(checkpoint.config, (name) => checkpoint.has(name));
    checkpoint.close();
    const bytes = polishBytes(opened, settings, 32, 512);
    expect(bytes).toBeGreaterThan(20e6);
    expect(bytes).toBeLessThan(400e6);
    expect(polishBytes(opened, settings, 32, 64)).toBeLessThan(bytes);
    checkPolish(opened, settings, 32, 512, bytes);
    const tooMuch = (): void => checkPolish(opened, settings, 32, 512, 10 * 2 ** 20);
    expectAqError(tooMuch, "AQ_OOM", "--polish", "10.0 MiB free", "--seqlen");
    checkPolish(opened, resolveSettings({ ...options, polish: 0 }), 32, 512, 0);
  });

  it("goes further where activations are whole numbers, and slower with few steps", () => {
    const rates = (options: Partial<QuantizeOptions>, steps: number) =>
      polishRates(resolveSettings({ model, out: "o", ...options }), steps);
    const weights = rates({ wbits: 3 }, 5000);
    expect(weights.offset).toBe(0.0015);
    expect(rates({ wbits: 4, abits: 4 }, 5000)).toEqual({ ...weights, offset: 0.003 });
    expect(rates({ wbits: 4, abits: 4, hadamard: "down" }, 5000)).toEqual(weights);
    expect(rates({ scheme: "NVFP4" }, 5000)).toEqual(weights);
    for (const [steps, pace] of [
      [500, 0.5],
      [10, 0.1],
    ] as const) {
      const { gain, clip, offset } = rates({ wbits: 3 }, steps);
      expect(gain / weights.gain).toBeCloseTo(pace, 12);
      expect(clip / weights.clip).toBeCloseTo(pace, 12);
      expect(offset).toBe(0.0015);
    }
  });

  it("holds back an eighth of the windows, at least two", () => {
    expect([3, 16, 31, 32, 100].map(heldBackWindows)).toEqual([2, 2, 3, 4, 12]);
  });
});
