// Calibration windows that the model writes itself: they go on from the text, are as long as the text's,
// are the same for the same seed, survive a stop, and are what the run is calibrated on.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { loadCalibration } from "../lib/calibration/text.ts";
import { checkWriting, together, writingBytes } from "../lib/calibration/writing-memory.ts";
import { type Writing, writtenWindows } from "../lib/calibration/written-windows.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { estimate } from "../lib/estimate.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent } from "../lib/types.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, firstBlocks, TRAINED, withModel } from "./helpers/fixture.ts";
import { filesBelow, readJson, SMALL, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const BEGINNING = 8;

let live = 0;
beforeEach(() => {
  live = liveTensors();
});

function beginnings(count: number, seed = 0): readonly Int32Array[] {
  const settings = { nsamples: count, seed, sampling: "sequential", calibSource: "model" } as const;
  return loadCalibration(BOOKS, loadTokenizer(TRAINED), 64, settings).calibration;
}

function writing(options: Partial<Writing> & { readonly file: string }): Writing {
  const common = { model: TRAINED, device: "cpu", seqlen: 24, seed: 0 };
  return { ...common, beginnings: beginnings(3), ...options };
}

const inFolder = (dir: string): string => path.join(dir, "written.jsonl");

describe("what the model writes", () => {
  it("goes on from the text, window by window, and is kept in words", async () => {
    const file = inFolder(tempFolder());
    const windows = await writtenWindows(writing({ file }));
    const text = [...loadTokenizer(TRAINED).encode(readTextFile(BOOKS))].join(" ");
    expect(windows).toHaveLength(3);
    for (const window of windows) {
      expect(window).toHaveLength(24);
      expect(window.every((id) => Number.isInteger(id) && id >= 0 && id < 4096)).toBe(true);
      expect(text).toContain([...window.subarray(0, BEGINNING)].join(" "));
    }
    // Three different beginnings, and what follows is not the text's.
    expect(new Set(windows.map((window) => window.subarray(0, BEGINNING).join(" "))).size).toBe(3);
    expect(windows.some((window) => !text.includes(window.join(" ")))).toBe(true);
    const lines = fs.readFileSync(file, "utf8").trimEnd().split("\n");
    const stored = lines.map((line) => JSON.parse(line) as { text: string; ids: number[] });
    expect(stored.map(({ ids }) => ids)).toEqual(windows.map((window) => [...window]));
    const [first] = stored;
    expect(first?.text).toBe(loadTokenizer(TRAINED).decode(first?.ids ?? []));
    expect(liveTensors()).toBe(live);
  });

  it("follows from the seed", async () => {
    const write = (seed: number) => writtenWindows(writing({ file: inFolder(tempFolder()), seed }));
    const [one, same, other] = [await write(4), await write(4), await write(5)];
    expect(same).toEqual(one);
    expect(other).not.toEqual(one);
  });

  it("begins anew where the model ends a text, behind the next beginning", async () => {
    // Every second id ends a text, so that one is over after two tokens in the mean.
    const ends = Array.from({ length: 2048 }, (_, i) => 2 * i);
    const model = copyFixture(TRAINED, tempFolder(), {});
    fs.writeFileSync(
      path.join(model, "generation_config.json"),
      JSON.stringify({ eos_token_id: ends }),
    );
    const given = beginnings(2);
    const windows = await writtenWindows(
      writing({ file: inFolder(tempFolder()), model, beginnings: given, seqlen: 100 }),
    );
    for (const [n, window] of windows.entries()) {
      expect(window).toHaveLength(100);
      let at = 0;
      let pieces = 0;
      for (; at < window.length; pieces++) {
        const beginning = given[(n + pieces) % 2] as Int32Array;
        const there = window.subarray(at, at + BEGINNING);
        expect([...there]).toEqual([...beginning.subarray(0, there.length)]);
        at += there.length;
        // Up to the id that ends the text, which is part of it.
        while (at < window.length && (window[at] as number) % 2 === 1) at++;
        at++;
      }
      expect(pieces).toBeGreaterThan(4);
    }
  });

  it("is read back from the file as far as that is whole", async () => {
    const file = inFolder(tempFolder());
    const windows = await writtenWindows(writing({ file }));
    const content = fs.readFileSync(file, "utf8");
    const events: QuantizeEvent[] = [];
    const again = async () => {
      events.length = 0;
      const onEvent = (event: QuantizeEvent) => void events.push(event);
      return writtenWindows(writing({ file, onEvent }));
    };
    expect(await again()).toEqual(windows);
    expect(events).toEqual([]);
    // A file that is gone is no damage.
    fs.rmSync(file);
    expect(await again()).toEqual(windows);
    expect(events.filter(({ event }) => event === "note")).toEqual([]);
    const lines = content.split("\n");
    const [first = "", second = ""] = lines;
    const damaged = second.replace(/"ids":\[(\d+)/, (_, id) => `"ids":[${Number(id) + 1}`);
    expect(damaged).not.toBe(second);
    for (const left of [
      `${first}\n${damaged}\n`,
      `${first}\n${second.slice(0, 40)}`,
      "null\n",
      "{}",
    ]) {
      fs.writeFileSync(file, left);
      expect(await again()).toEqual(windows);
      const note = events.find((event) => event.event === "note");
      expect(note?.event === "note" && note.text).toContain(`of ${file} is not what was written`);
      expect(fs.readFileSync(file, "utf8")).toBe(content);
    }
  });

  it("tells how far it is", async () => {
    const events: QuantizeEvent[] = [];
    const onEvent = (event: QuantizeEvent) => void events.push(event);
    await writtenWindows(writing({ file: inFolder(tempFolder()), onEvent }));
    const counts = events.map((event) => (event.event === "writing" ? event.tokens : Number.NaN));
    expect(events[0]).toEqual({ event: "writing", tokens: 0, of: 72, secondsLeft: null });
    expect(counts).toEqual([...counts].sort((a, b) => a - b));
    expect(counts.at(-1)).toBe(72);
    expect(counts.length).toBeLessThan(24);
  });

  it("is written together as far as 8 GiB of caches go", () => {
    const small = { blocks: 4, kvHeads: 4, headDim: 32 };
    const large = { blocks: 32, kvHeads: 32, headDim: 128 };
    expect(together(small, 512, "cpu", 100)).toBe(32);
    expect(together(small, 512, "cuda:0", 200)).toBe(128);
    expect(together(small, 512, "cpu", 3)).toBe(3);
    expect(together(large, 2048, "cpu", 100)).toBe(4);
    expect(together(large, 2048, "cuda:0", 100)).toBe(8);
    expect(together(large, 1_000_000, "cpu", 100)).toBe(1);
  });

  it("is refused where the model and its caches do not fit", () => {
    withModel(TRAINED, ({ model }) => {
      const { model: weights, caches } = writingBytes(model, 512, "cpu", 3);
      // Two matrices of 3 windows, 512 tokens, 4 blocks, 4 heads of 32, in f32.
      expect(caches).toBe(2 * 3 * 512 * 4 * 4 * 32 * 4);
      expect(weights).toBeGreaterThan(3.9e6 * 4);
      checkWriting(model, 512, "cpu", 3, weights + caches);
      const check = () => checkWriting(model, 512, "cpu", 3, weights + caches - 1);
      expectAqError(check, "AQ_OOM", "--calib-source text", "memory");
    });
  });
});

describe("a run on it", () => {
  const OWN = { calibSource: "model" } as const;

  it("is calibrated on what was written, and says so", async () => {
    const [model, out] = [firstBlocks(tempFolder(), 1), tempFolder()];
    const { events, notes } = await smallRun({ ...OWN, model, out });
    expect(events[0]).toMatchObject({ event: "start", windows: 3, seqlen: 64 });
    expect(notes[0]).toContain("the model writes the calibration windows itself");
    const report = readJson(out, "aq", "report.json") as {
      calibration: object;
      phaseSeconds: Record<string, number>;
    };
    expect(report.calibration).toMatchObject({ windows: 3, seqlen: 64 });
    expect(JSON.stringify(report.calibration)).toContain("what the model writes");
    expect(report.phaseSeconds["text"]).toBeGreaterThan(0);
    // The same windows as a text give the same blocks.
    const blocks = (dir: string): Buffer =>
      fs.readFileSync(path.join(dir, "aq", "blocks", "block-0000.safetensors"));
    const plain = tempFolder();
    await smallRun({ model, out: plain });
    expect(blocks(plain).equals(blocks(out))).toBe(false);
    expect(liveTensors()).toBe(live);
  });

  it("that is stopped while the model writes goes on to the same bytes", async () => {
    const model = firstBlocks(tempFolder(), 1);
    // More than one batch; stopped in the second.
    const options = { ...OWN, model, nsamples: 40, seqlen: 12, epochs: 1 };
    const [whole, stopped] = [tempFolder(), tempFolder()];
    await smallRun({ ...options, out: whole });
    const controller = new AbortController();
    const onEvent = (event: QuantizeEvent): void => {
      if (event.event === "writing" && event.tokens > 32 * 12 + 40) controller.abort();
    };
    const run = smallRun({ ...options, out: stopped }, { onEvent, signal: controller.signal });
    await expectAqRejection(run, "AQ_STOPPED", "stopped", "32 of 40 windows are stored");
    expect(liveTensors()).toBe(live);
    const file = (dir: string): string => inFolder(path.join(dir, "aq"));
    expect(fs.readFileSync(file(stopped), "utf8").trimEnd().split("\n")).toHaveLength(32);
    const { events, notes } = await smallRun({ ...options, out: stopped });
    expect(notes.some((note) => note.startsWith("32 of 40 windows"))).toBe(true);
    const first = events.find((event) => event.event === "writing");
    expect(first).toMatchObject({ tokens: 32 * 12, of: 480 });
    const compared = filesBelow(whole).filter((name) => !/aq\/(report|job)[.]/.test(name));
    expect(filesBelow(stopped)).toEqual(filesBelow(whole));
    for (const name of compared) {
      const [a, b] = [whole, stopped].map((dir) => fs.readFileSync(path.join(dir, name)));
      expect(a?.equals(b as Buffer), name).toBe(true);
    }
  });

  it("is another one than a run on the text", async () => {
    const [model, out] = [firstBlocks(tempFolder(), 1), tempFolder()];
    await smallRun({ model, out });
    const own = smallRun({ ...OWN, model, out });
    await expectAqRejection(own, "AQ_ARG", out, "another run", "source", "model");
    const other = tempFolder();
    await smallRun({ ...OWN, model, out: other });
    const seeded = smallRun({ ...OWN, model, out: other, seed: 1 });
    await expectAqRejection(seeded, "AQ_ARG", "another run");
    const { events } = await smallRun({ ...OWN, model, out: other });
    expect(events.map(({ event }) => event)).toEqual(["resume", "done"]);
  });

  it("makes blocks again that were calibrated on other windows", async () => {
    const [model, out] = [firstBlocks(tempFolder(), 2), tempFolder()];
    const controller = new AbortController();
    const onEvent = (event: QuantizeEvent): void => {
      if (event.event === "block") controller.abort();
    };
    const run = smallRun({ ...OWN, model, out }, { onEvent, signal: controller.signal });
    await expectAqRejection(run, "AQ_STOPPED", "1 of 2 blocks");
    const job = readJson(out, "aq", "job.json") as { written: string };
    expect(job.written).toMatch(/^[0-9a-f]{64}$/);
    fs.writeFileSync(
      path.join(out, "aq", "job.json"),
      JSON.stringify({ ...job, written: "0".repeat(64) }),
    );
    const { notes, events } = await smallRun({ ...OWN, model, out });
    expect(notes.some((note) => note.includes("other windows"))).toBe(true);
    const made = events.flatMap((event) => (event.event === "block" ? [event.block] : []));
    expect(made).toEqual([0, 1]);
    expect(readJson(out, "aq", "job.json")["written"]).toBe(job.written);
  });

  it("begins behind what it is measured on, and again at the same places of a short text", () => {
    const tokenizer = loadTokenizer(TRAINED);
    const settings = { nsamples: 50, seed: 0, sampling: "random", calibSource: "model" } as const;
    const { calibration, evaluation } = loadCalibration(BOOKS, tokenizer, 64, settings);
    const end = Math.max(...evaluation.map((w) => w.byteOffset + w.byteLength));
    expect(calibration.every((w) => w.byteOffset >= end)).toBe(true);
    const file = path.join(tempFolder(), "short.txt");
    fs.writeFileSync(file, "The sea was calm, and nobody on board had seen the light.");
    const few = loadCalibration(file, tokenizer, 10, settings);
    expect(few.calibration).toHaveLength(50);
    expect(new Set(few.calibration.map((w) => w.join(" "))).size).toBeLessThan(20);
  });

  it("refuses windows that would be all beginning, and unknown sources", async () => {
    const out = tempFolder();
    await expectAqRejection(smallRun({ ...OWN, out, seqlen: 8 }), "AQ_ARG", "above 8", "got 8");
    const unknown = { calibSource: "books" as "text" };
    await expectAqRejection(smallRun({ ...unknown, out }), "AQ_ARG", "text or model", "books");
    const sampled = smallRun({ ...OWN, sampling: "sequential", out });
    await expectAqRejection(sampled, "AQ_ARG", "sampling", "leave one of them out");
    expectAqError(() => estimate({ ...SMALL, ...OWN, seqlen: 8 }), "AQ_ARG", "above 8");
    expect(fs.readdirSync(out)).toEqual([]);
  });

  it("is estimated with the time and the memory of writing", () => {
    const [text, own] = [estimate(SMALL), estimate({ ...SMALL, ...OWN })];
    const seconds = ({ phaseSeconds }: typeof own): number => phaseSeconds["text"] as number;
    expect(seconds(own)).toBeGreaterThan(seconds(text));
    // A model of many small blocks is largest when all of it is there.
    const rtn = { ...SMALL, recipe: "rtn", nsamples: 32, seqlen: 512 } as const;
    expect(estimate({ ...rtn, ...OWN }).memoryBytes).toBeGreaterThan(estimate(rtn).memoryBytes);
  });
});
