// A run in several sessions writes what one session writes, to the last byte, wherever it was stopped;
// and a run is only gone on with when it is the same run.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Job } from "../lib/export/job.ts";
import { inspect } from "../lib/inspect.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent, QuantizeOptions } from "../lib/types.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, firstBlocks } from "./helpers/fixture.ts";
import { expectSameResult, type Run, readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { tensorNamed } from "./helpers/tensor-file.ts";

const tempFolder = tempFolders();
/** Every phase: rotation, transforms, learned rounding. */
const SETTINGS = { wbits: 4, abits: 4, recipe: "default" } as const;

let temp = "";
let model = "";
/** What one session writes. */
let whole = "";
let wholeRun: Run;

beforeAll(async () => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  [model, whole] = ["model", "whole"].map((name) => path.join(temp, name)) as [string, string];
  fs.mkdirSync(model);
  firstBlocks(model, 2);
  wholeRun = await smallRun({ ...SETTINGS, model, out: whole });
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

type Moment = (event: QuantizeEvent) => boolean;

const inBlock = (block: number, phase: string): Moment => {
  return (e) => e.event === "phase" && e.block === block && e.phase === phase;
};

/** Starts a run and stops it at a moment. */
async function stopAt(out: string, moment: Moment, options: Partial<QuantizeOptions> = {}) {
  const controller = new AbortController();
  const onEvent = (event: QuantizeEvent): void => {
    if (moment(event)) controller.abort();
  };
  const hooks = { onEvent, signal: controller.signal };
  const stopped = smallRun({ ...SETTINGS, model, out, ...options }, hooks);
  await expectAqRejection(stopped, "AQ_STOPPED", "blocks are stored", "the same command goes on");
}

function job(out: string): Job {
  return readJson(out, "aq", "job.json") as unknown as Job;
}

describe("a stopped run that is started again", () => {
  it.each<[string, Moment, number]>([
    ["measuring", (e) => e.event === "eval" && e.which === "before" && e.window === 1, 0],
    ["rotating", (e) => e.event === "stage" && e.stage === "rotate", 0],
    ["taking statistics", inBlock(0, "statistics"), 0],
    ["learning", (e) => e.event === "step" && e.block === 1 && e.step === 2, 1],
    ["folding", inBlock(1, "fold"), 1],
    ["rounding", inBlock(1, "round"), 1],
    ["writing a block", inBlock(0, "write"), 1],
    ["replacing files", (e) => e.event === "stage" && e.stage === "export", 2],
    ["measuring the result", (e) => e.event === "eval" && e.which === "after", 2],
  ])("in %s gives the same bytes", async (_, moment, stored) => {
    const live = liveTensors();
    const out = tempFolder();
    await stopAt(out, moment);
    expect(job(out)).toMatchObject({ status: "running", blocks: 2, result: null });
    expect(job(out).finished).toHaveLength(stored);
    const { result, events } = await smallRun({ ...SETTINGS, model, out });
    expectSameResult(out, whole);
    expect(liveTensors()).toBe(live);

    const resumed = events.filter(({ event }) => event === "resume");
    const expected = { event: "resume", blocksDone: stored, blocks: 2, finished: false };
    expect(resumed).toEqual(stored > 0 ? [expected] : []);
    const blocks = events.flatMap((e) => (e.event === "block" ? [e.block] : []));
    expect(blocks).toEqual([0, 1].slice(stored));
    expect([result.pplBefore, result.pplAfter]).toEqual([
      wholeRun.result.pplBefore,
      wholeRun.result.pplAfter,
    ]);
    if (stored > 0) {
      // The source was measured in the first session.
      expect(events.some((e) => e.event === "eval" && e.which === "before")).toBe(false);
    }
  });

  it("may have other threads and memory limits, and adds up its seconds", async () => {
    const out = tempFolder();
    await stopAt(out, inBlock(1, "fold"), { threads: 2, streamMemory: 0 });
    const before = job(out).seconds;
    const limits = { threads: 1, streamMemory: 100_000, resume: "required" } as const;
    const { result } = await smallRun({ ...SETTINGS, model, out, ...limits });
    expectSameResult(out, whole);
    expect(result.seconds).toBeGreaterThan(before);
    await smallRun({ ...SETTINGS, model, out, threads: 2 });
  });

  it("cleans what a killed process left half written", async () => {
    const out = tempFolder();
    await stopAt(out, inBlock(1, "affine"));
    const left = [".staging-999999/x", "aq/job.json.tmp-999999", "aq/blocks/b.tmp-999999"];
    for (const file of left) {
      fs.mkdirSync(path.dirname(path.join(out, file)), { recursive: true });
      fs.writeFileSync(path.join(out, file), "half");
    }
    await smallRun({ ...SETTINGS, model, out });
    expectSameResult(out, whole);
    for (const file of left) expect(fs.existsSync(path.join(out, file)), file).toBe(false);
  });

  it("computes a damaged or missing block again and says so", async () => {
    for (const damage of [
      (file: string) => fs.rmSync(file),
      (file: string) => {
        const bytes = fs.readFileSync(file);
        bytes.writeUInt8(bytes.readUInt8(bytes.length - 1) ^ 1, bytes.length - 1);
        fs.writeFileSync(file, bytes);
      },
    ]) {
      const out = tempFolder();
      await stopAt(out, (e) => e.event === "stage" && e.stage === "export");
      damage(path.join(out, "aq/blocks/block-0001.safetensors"));
      const { notes, events } = await smallRun({ ...SETTINGS, model, out });
      expect(notes.some((note) => note.includes("block-0001.safetensors"))).toBe(true);
      expect(events.flatMap((e) => (e.event === "block" ? [e.block] : []))).toEqual([1]);
      expectSameResult(out, whole);
    }
  });

  it("says when its streams do not come out as they were", async () => {
    const out = tempFolder();
    await stopAt(out, inBlock(1, "affine"));
    const changed = job(out);
    const [first] = changed.finished;
    const finished = [{ ...first, report: { ...first?.report, streamError: 0.5 } }];
    fs.writeFileSync(path.join(out, "aq/job.json"), JSON.stringify({ ...changed, finished }));
    const { notes } = await smallRun({ ...SETTINGS, model, out });
    expect(notes.some((note) => note.includes("not the same to the last bit"))).toBe(true);
  });
});

describe("a finished run", () => {
  it("says its result again and touches nothing", async () => {
    const times = () =>
      fs.readdirSync(whole).map((name) => fs.statSync(path.join(whole, name)).mtimeMs);
    const before = times();
    const { result, events } = await smallRun({ ...SETTINGS, model, out: whole });
    expect(result).toEqual(JSON.parse(JSON.stringify(wholeRun.result)));
    expect(events).toEqual([
      { event: "resume", blocksDone: 2, blocks: 2, finished: true },
      { event: "done", ...result },
    ]);
    expect(times()).toEqual(before);
  });

  it("whose checkpoint is gone writes it again", async () => {
    const out = tempFolder();
    fs.cpSync(whole, out, { recursive: true });
    fs.rmSync(path.join(out, "config.json"));
    await smallRun({ ...SETTINGS, model, out });
    expectSameResult(out, whole);
  });

  it("starts anew with overwrite", async () => {
    const out = tempFolder();
    fs.cpSync(whole, out, { recursive: true });
    const { events } = await smallRun({ ...SETTINGS, model, out, overwrite: true });
    expect(events.filter(({ event }) => event === "block")).toHaveLength(2);
    expectSameResult(out, whole);
  });
});

describe("another run is refused, naming what differs:", () => {
  const refuse = (options: Partial<QuantizeOptions>, ...parts: string[]): Promise<void> =>
    expectAqRejection(
      smallRun({ ...SETTINGS, model, out: whole, ...options }),
      "AQ_ARG",
      whole,
      "holds another run",
      ...parts,
      "--overwrite",
    );

  it.each<[Partial<QuantizeOptions>, string]>([
    [{ wbits: 3 }, "scheme.wbits was 4 and is now 3"],
    [{ abits: 8 }, "scheme.abits was 4 and is now 8"],
    [{ groupSize: 64 }, "scheme.groupSize was 0 and is now 64"],
    [{ symmetric: true }, "scheme.symmetric was false and is now true"],
    [{ recipe: "rtn" }, 'recipe.name was "default" and is now "rtn"'],
    [{ sf: 0.2 }, "train.sf was 0.1 and is now 0.2"],
    [{ letLr: 1e-3 }, "train.letLr was 0.005 and is now 0.001"],
    [{ batch: 2 }, "train.batch was 1 and is now 2"],
    [{ wd: 0.01 }, "train.weightDecay was 0 and is now 0.01"],
    [{ augLoss: false }, "train.augLoss was true and is now false"],
    [{ seed: 1 }, "seed was 0 and is now 1"],
    [{ sampling: "random" }, "calibration text: tokens differs"],
    [{ nsamples: 2 }, "calibration text: windows was 3 and is now 2"],
    [{ seqlen: 32 }, "calibration text: seqlen was 64 and is now 32"],
  ])("%j", async (options, text) => {
    await refuse(options, text);
  });

  it("the text", async () => {
    const calib = path.join(tempFolder(), "text.txt");
    fs.writeFileSync(calib, `Well, ${fs.readFileSync(BOOKS, "utf8")}`);
    await refuse({ calib }, "calibration text: tokens differs");
  });

  it("a weight, whatever its file's time and size", async () => {
    const changed = copyFixture(model, tempFolder(), {
      tensors: (tensors) => {
        const { bytes } = tensorNamed(tensors, "model.norm.weight");
        bytes[0] = (bytes[0] as number) ^ 1;
      },
    });
    const was = fs.statSync(path.join(model, "model.safetensors"));
    fs.utimesSync(path.join(changed, "model.safetensors"), was.atime, was.mtime);
    await refuse({ model: changed }, "the model's model.safetensors differs");
  });

  it("the configuration", async () => {
    const config = (json: Record<string, unknown>) => ({ ...json, rms_norm_eps: 1e-4 });
    const changed = copyFixture(model, tempFolder(), { config });
    await refuse({ model: changed }, "the model's config.json differs");
  });

  it("the version, and a field that is unknown", async () => {
    for (const [change, text] of [
      [{ version: "0.0.1" }, 'the version of aq-native was "0.0.1"'],
      [{ planet: "earth" }, 'planet was "earth" and is now absent'],
    ] as const) {
      const out = tempFolder();
      fs.cpSync(whole, out, { recursive: true });
      const old = job(out);
      const identity = { ...old.identity, ...change };
      fs.writeFileSync(path.join(out, "aq/job.json"), JSON.stringify({ ...old, identity }));
      await expectAqRejection(smallRun({ ...SETTINGS, model, out }), "AQ_ARG", out, text);
    }
  });

  it("but not a model that lies elsewhere", async () => {
    const moved = path.join(tempFolder(), "moved");
    fs.cpSync(model, moved, { recursive: true });
    const { result } = await smallRun({ ...SETTINGS, model: moved, out: whole });
    expect(result.pplAfter).toBe(wholeRun.result.pplAfter);
  });
});

describe("--resume", () => {
  it("required refuses to start, never refuses to go on, and overwrite fits neither", async () => {
    const run = (options: Partial<QuantizeOptions> & { out: string }) =>
      smallRun({ ...SETTINGS, model, ...options });
    const out = tempFolder();
    await expectAqRejection(run({ out, resume: "required" }), "AQ_ARG", "There is no run in", out);
    const never = run({ out: whole, resume: "never" });
    await expectAqRejection(never, "AQ_ARG", whole, "finished", "never");
    const both = run({ out, resume: "required", overwrite: true });
    await expectAqRejection(both, "AQ_ARG", "--overwrite");
    const unknown = run({ out, resume: "always" as "auto" });
    await expectAqRejection(unknown, "AQ_ARG", "auto, required, never");
    expect(fs.readdirSync(out)).toEqual([]);
  });

  it("auto refuses a folder with files and no run, and takes one with leftovers", async () => {
    const out = tempFolder();
    fs.writeFileSync(path.join(out, "letter.txt"), "dear");
    await expectAqRejection(smallRun({ ...SETTINGS, model, out }), "AQ_ARG", "not empty");
    fs.rmSync(path.join(out, "letter.txt"));
    fs.mkdirSync(path.join(out, "aq/blocks"), { recursive: true });
    fs.writeFileSync(path.join(out, "aq/job.json.tmp-999999"), "half");
    fs.writeFileSync(path.join(out, "aq/lock"), "half");
    await smallRun({ ...SETTINGS, model, out });
    expectSameResult(out, whole);
  });

  it("needs a job.json that is whole", async () => {
    const out = tempFolder();
    fs.cpSync(whole, out, { recursive: true });
    for (const [text, part] of [
      ["{", "not valid JSON"],
      ["{}", '"format"'],
      [JSON.stringify({ ...job(whole), finished: [{}] }), '"finished"'],
      [JSON.stringify({ ...job(whole), result: null }), '"result"'],
    ] as const) {
      fs.writeFileSync(path.join(out, "aq/job.json"), text);
      const run = smallRun({ ...SETTINGS, model, out });
      await expectAqRejection(run, "AQ_FORMAT", "job.json", part);
    }
  });
});

describe("a run folder", () => {
  it("belongs to one process at a time", async () => {
    const out = tempFolder();
    let second: Promise<void> | undefined;
    const onEvent = (event: QuantizeEvent): void => {
      if (event.event !== "stage" || second) return;
      const run = smallRun({ ...SETTINGS, model, out });
      second = expectAqRejection(run, "AQ_FILE", `Process ${process.pid} is working on`);
    };
    await smallRun({ ...SETTINGS, model, out }, { onEvent });
    expect(second).toBeDefined();
    await second;
    expectSameResult(out, whole);
    expect(fs.existsSync(path.join(out, "aq/lock"))).toBe(false);
  });

  it("shows in inspect how far it has come", async () => {
    expect(inspect({ model }).run).toBeUndefined();
    expect(inspect({ model: whole })).toMatchObject({
      model: whole,
      run: { status: "done", blocksDone: 2, left: [], pplAfter: wholeRun.result.pplAfter },
    });
    const out = tempFolder();
    await stopAt(out, inBlock(1, "fold"));
    const { run, ...facts } = inspect({ model: out });
    expect(facts).toMatchObject({ model, quantized: null, blocks: 2 });
    expect(run).toMatchObject({
      out,
      status: "running",
      source: model,
      blocks: 2,
      blocksDone: 1,
      pplBefore: wholeRun.result.pplBefore,
      pplAfter: null,
      left: ["block 2", "write the checkpoint", "measure it"],
    });
    expect(run?.secondsLeft).toBeGreaterThan(0);
  });
});
