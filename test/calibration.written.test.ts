// Calibration windows that the model writes itself: they go on from the text, are as long as the text's,
// are the same for the same seed, survive a stop, and are what the run is calibrated on.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { loadCalibration } from "../lib/calibration/text.ts";
import { together, type Writing, writtenWindows } from "../lib/calibration/written-windows.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { estimate } from "../lib/estimate.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent } from "../lib/types.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, firstBlocks, TRAINED } from "./helpers/fixture.ts";
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

  it("begins anew where the model ends a text", async () => {
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
      const own = new Set(given[n]);
      expect(window).toHaveLength(100);
      expect([...window].filter((id) => id % 2 === 0 && !own.has(id))).toEqual([]);
      const starts = [...window].filter((_, i) =>
        window.subarray(i, i + BEGINNING).every((id, k) => id === given[n]?.[k]),
      );
      expect(starts.length).toBeGreaterThan(3);
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
      expect(events.length).toBeGreaterThan(0);
      expect(fs.readFileSync(file, "utf8")).toBe(content);
    }
  });

  it("tells how far it is", async () => {
    const events: QuantizeEvent[] = [];
    const onEvent = (event: QuantizeEvent) => void events.push(event);
    await writtenWindows(writing({ file: inFolder(tempFolder()), onEvent }));
    const counts = events.map((event) => (event.event === "writing" ? event.tokens : Number.NaN));
    expect(events[0]).toMatchObject({ event: "writing", of: 72 });
    expect(counts).toEqual([...counts].sort((a, b) => a - b));
    expect(counts.at(-1)).toBeGreaterThan(60);
  });

  it("is written together as far as 8 GiB of caches go", () => {
    const small = { blocks: 4, kvHeads: 4, headDim: 32 };
    const large = { blocks: 32, kvHeads: 32, headDim: 128 };
    expect(together(small, 512, "cpu")).toBe(32);
    expect(together(large, 2048, "cpu")).toBe(4);
    expect(together(large, 2048, "cuda:0")).toBe(8);
    expect(together(large, 1_000_000, "cpu")).toBe(1);
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
    await expectAqRejection(run, "AQ_STOPPED", "stopped");
    expect(liveTensors()).toBe(live);
    const file = (dir: string): string => inFolder(path.join(dir, "aq"));
    expect(fs.readFileSync(file(stopped), "utf8").trimEnd().split("\n")).toHaveLength(32);
    const { events } = await smallRun({ ...options, out: stopped });
    const first = events.find((event) => event.event === "writing");
    expect(first).toMatchObject({ of: 480 });
    expect(first?.event === "writing" && first.tokens).toBeGreaterThan(32 * 12);
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
    await expectAqRejection(smallRun({ ...OWN, model, out }), "AQ_ARG", out, "another run");
    const other = tempFolder();
    await smallRun({ ...OWN, model, out: other });
    const seeded = smallRun({ ...OWN, model, out: other, seed: 1 });
    await expectAqRejection(seeded, "AQ_ARG", "another run");
    const { events } = await smallRun({ ...OWN, model, out: other });
    expect(events.map(({ event }) => event)).toEqual(["resume", "done"]);
  });

  it("refuses windows that would be all beginning, and unknown sources", async () => {
    const out = tempFolder();
    await expectAqRejection(smallRun({ ...OWN, out, seqlen: 8 }), "AQ_ARG", "above 8", "got 8");
    const unknown = { calibSource: "books" as "text" };
    await expectAqRejection(smallRun({ ...unknown, out }), "AQ_ARG", "text or model", "books");
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
