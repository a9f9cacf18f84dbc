import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { defaultTextPath, readTextFile } from "../lib/data/text.ts";
import { randomWindows, sequentialWindows } from "../lib/data/windows.ts";
import { createRandom } from "../lib/util/random.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
/** From an independent implementation in Python. */
const FIRST_BITS_OF_SEED_0 = [1554809857, 1219411154, 1941050908, 1688206788];

const ids = Int32Array.from({ length: 23 }, (_, i) => 100 + i);

describe("sequential windows", () => {
  it("are the first ones, side by side", () => {
    const windows = sequentialWindows(ids, 5, 2).map((w) => [...w]);
    expect(windows).toEqual([
      [100, 101, 102, 103, 104],
      [105, 106, 107, 108, 109],
    ]);
  });

  it("are all there are when more are asked for, without the rest", () => {
    expect(sequentialWindows(ids, 5, 100)).toHaveLength(4);
    expect(sequentialWindows(ids, 23, 1)).toHaveLength(1);
  });

  it("say how many tokens are missing", () => {
    expectAqError(() => sequentialWindows(ids, 24, 1), "AQ_ARG", "has 23 tokens", "needs 24");
    expectAqError(() => sequentialWindows(ids, 0, 1), "AQ_ARG", "seqlen");
    expectAqError(() => sequentialWindows(ids, 5, 1.5), "AQ_ARG", "count", "1.5");
  });
});

describe("random windows", () => {
  it("depend on the seed and on nothing else", () => {
    const starts = (seed: number): number[] =>
      randomWindows(ids, 4, 6, seed).map((w) => w[0] ?? -1);
    expect(starts(0)).toEqual(starts(0));
    expect(starts(0)).not.toEqual(starts(1));
    expect(starts(1)).not.toEqual(starts(1 + 2 ** 32));
    expect(new Set(starts(7)).size).toBe(6);
    for (const w of randomWindows(ids, 4, 6, 3)) {
      expect([...w]).toEqual(Array.from({ length: 4 }, (_, i) => (w[0] ?? 0) + i));
    }
  });

  it("reach every place, and give one window for each when more are asked for", () => {
    const starts = randomWindows(ids, 4, 1000, 5).map((w) => (w[0] ?? 0) - 100);
    expect(starts.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i));
    expectAqError(() => randomWindows(ids, 24, 1, 0), "AQ_ARG", "has 23 tokens");
  });
});

describe("the random generator", () => {
  it("keeps its sequence, so that old runs can be repeated", () => {
    const random = createRandom(0);
    expect(Array.from({ length: 4 }, () => random.bits())).toEqual(FIRST_BITS_OF_SEED_0);
  });

  it("is uniform", () => {
    const random = createRandom(-12345);
    const counts = new Array<number>(10).fill(0);
    for (let i = 0; i < 100_000; i++) {
      const x = random.below(10);
      counts[x] = (counts[x] ?? 0) + 1;
    }
    // Five standard deviations of a fair draw.
    for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(475);
    expect(createRandom(1).below(1)).toBe(0);
  });
});

describe("text files", () => {
  function file(bytes: Uint8Array | string): string {
    const name = path.join(tempFolder(), "text.txt");
    fs.writeFileSync(name, bytes);
    return name;
  }

  it("are read as they are, but for a byte-order mark", () => {
    expect(readTextFile(file("\ufeffa\r\n\u00e4\ufeff b "))).toBe("a\r\n\u00e4\ufeff b ");
  });

  it("are refused when missing, a folder, empty, or not UTF-8", () => {
    const dir = tempFolder();
    expectAqError(() => readTextFile(path.join(dir, "x")), "AQ_FILE", "does not exist");
    expectAqError(() => readTextFile(dir), "AQ_FILE", "is a folder");
    expectAqError(() => readTextFile(file("")), "AQ_FILE", "is empty");
    expectAqError(() => readTextFile(file("\ufeff \n")), "AQ_FILE", "is empty");
    const latin1 = Buffer.from("one\ntwo\nth\xe4ee\n", "latin1");
    expectAqError(() => readTextFile(file(latin1)), "AQ_FORMAT", "line 3");
    const utf16 = Buffer.from("\ufeffab", "utf16le");
    expectAqError(() => readTextFile(file(utf16)), "AQ_FORMAT", "UTF-16");
  });

  it("include one that comes with the package: whole lines, at most 200 KB", () => {
    const text = readTextFile(defaultTextPath());
    const bytes = Buffer.byteLength(text);
    expect(bytes).toBeLessThanOrEqual(200_000);
    expect(bytes).toBeGreaterThan(199_000);
    expect(text.endsWith("\n")).toBe(true);
  });
});
