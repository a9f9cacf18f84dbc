// Disks that are full or read-only, given to the built command: a sentence, no half-written result, and
// a run that goes on when there is room again.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { expectSentence, quantizeArgs, runCommand } from "./helpers/command.ts";
import { BOOKS, firstBlocks } from "./helpers/fixture.ts";
import { noSmallDisks, SmallDisk } from "./helpers/small-disk.ts";
import { expectSameResult, filesBelow } from "./helpers/small-run.ts";

const reason = noSmallDisks();
if (reason) console.warn(`tests of full and read-only disks are skipped: ${reason}`);

let temp = "";
let model = "";
let whole = "";
let disk: SmallDisk | undefined;

function args(out: string): string[] {
  return quantizeArgs({ model, calib: BOOKS, out });
}

function mount(kib: number): SmallDisk {
  const dir = fs.mkdtempSync(path.join(temp, "disk-"));
  disk = new SmallDisk(dir, kib);
  return disk;
}

describe.skipIf(reason)("a disk", () => {
  beforeAll(() => {
    temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
    [model, whole] = ["model", "whole"].map((name) => path.join(temp, name)) as [string, string];
    fs.mkdirSync(model);
    firstBlocks(model, 2);
    expect(runCommand(...args(whole)).code).toBe(0);
  });

  afterEach(() => {
    disk?.unmount();
    disk = undefined;
  });

  afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

  it("that is read-only is refused before any work", () => {
    const { dir } = mount(1024);
    disk?.makeReadOnly();
    for (const out of [dir, path.join(dir, "out")]) {
      expectSentence(runCommand(...args(out)), 1, dir, /read-only/);
    }
    expect(fs.readdirSync(dir)).toEqual([]);
  });

  it("that became read-only still tells of a finished run", () => {
    const { dir } = mount(64 * 1024);
    fs.cpSync(whole, dir, { recursive: true });
    disk?.makeReadOnly();
    const { code, stdout } = runCommand(...args(dir));
    expect(code).toBe(0);
    expect(stdout).toContain("perplexity");
  });

  // Room for nothing but the start, for one block, for the blocks but not for the checkpoint.
  it.each([4, 200, 1000, 3000])("of %d KiB that is full stops the run, which goes on", (kib) => {
    const small = mount(kib);
    expectSentence(runCommand(...args(small.dir)), 1, small.dir, /disk is full/);
    const files = filesBelow(small.dir);
    const known = /^aq\/(job\.json|tokens\.bin|blocks\/block-\d{4}\.safetensors)$/;
    expect(files.filter((file) => !known.test(file))).toEqual([]);
    for (const file of files) {
      const [size, expected] = [small.dir, whole].map(
        (dir) => fs.statSync(path.join(dir, file)).size,
      );
      if (file !== "aq/job.json") expect(size, file).toBe(expected);
    }
    small.resize(64 * 1024);
    expect(runCommand(...args(small.dir))).toMatchObject({ code: 0 });
    expectSameResult(small.dir, whole);
  });

  it("that is too small for streams says so", () => {
    const { dir } = mount(200);
    const outcome = runCommand(...args(dir), "--stream-memory", "0");
    expectSentence(outcome, 1, dir, /stream: the disk is full/);
  });
});
