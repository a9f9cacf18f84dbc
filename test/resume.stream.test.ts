// Streams of activations hold the same values wherever their windows lie, and leave no file behind;
// cached tokens are used only when they are the right ones.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { Stream } from "../lib/calibration/stream.ts";
import { residentWindows, streamBudget } from "../lib/calibration/streams.ts";
import { TokenCache } from "../lib/calibration/token-cache.ts";
import { byteCount } from "../lib/cli/values.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { TRAINED } from "./helpers/fixture.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const SHAPE = { windows: 5, tokens: 3, channels: 4 };

/** States of a window, different for each. */
function statesOf(n: number): Float32Array {
  return Float32Array.from({ length: 12 }, (_, i) => Math.fround(100 * n + i + 1 / 3));
}

describe("a stream", () => {
  it.each([0, 2, 5, Number.POSITIVE_INFINITY])("with %d windows in memory", (resident) => {
    const live = liveTensors();
    const dir = tempFolder();
    const stream = new Stream(SHAPE, { resident, file: path.join(dir, "below", "x.stream") });
    scope(() => {
      for (const n of [4, 0, 3, 1, 2]) stream.store(n, Tensor.from(statesOf(n), [1, 3, 4]));
      stream.store(1, Tensor.from(statesOf(9), [3, 4]));
      for (const n of [0, 1, 2, 3, 4]) {
        const window = stream.window(n);
        expect(window.shape).toEqual([1, 3, 4]);
        expect(window.floats()).toEqual(statesOf(n === 1 ? 9 : n));
      }
    });
    for (const [first, count] of [
      [0, 5],
      [1, 3],
      [3, 2],
      [4, 1],
    ] as const) {
      scope(() => {
        const range = stream.range({ first, count });
        expect(range.shape).toEqual([count, 3, 4]);
        const want = Array.from({ length: count }, (_, i) =>
          statesOf(first + i === 1 ? 9 : first + i),
        );
        expect([...range.floats()]).toEqual(want.flatMap((states) => [...states]));
      });
    }
    const below = path.join(dir, "below");
    expect(fs.existsSync(below) ? fs.readdirSync(below) : []).toEqual([]);
    stream.dispose();
    stream.dispose();
    expect(liveTensors()).toBe(live);
  });

  it("refuses what it cannot hold", () => {
    const stream = new Stream(SHAPE);
    scope(() => {
      const states = Tensor.from(new Float32Array(11));
      expectAqError(() => stream.store(0, states), "AQ_SHAPE", "[1, 3, 4]", "[11]");
      expectAqError(() => stream.window(5), "AQ_INTERNAL", "5 windows");
      expectAqError(() => stream.range({ first: 4, count: 2 }), "AQ_INTERNAL", "no window 5");
    });
    stream.dispose();
  });

  it("shares a limit with the others", () => {
    expect(residentWindows(undefined, 100, 3)).toBe(Number.POSITIVE_INFINITY);
    expect(residentWindows(1000, 100, 3)).toBe(3);
    expect(residentWindows(0, 100, 2)).toBe(0);
    expectAqError(() => streamBudget(-1), "AQ_ARG", "-1");
    expectAqError(() => streamBudget(1.5), "AQ_ARG", "1.5");
  });
});

describe("a size", () => {
  it.each([
    ["64MB", 64e6],
    ["1.5 GiB", 1.5 * 2 ** 30],
    ["100", 100],
    ["2kb", 2000],
    ["0", 0],
  ])("%s", (text, bytes) => {
    expect(byteCount(text)).toBe(bytes);
  });

  it.each(["", "MB", "-1MB", "1e3", "5 apples", "9999999TB"])("not %j", (text) => {
    expect(() => byteCount(text)).toThrow("a size like 64MB");
  });
});

describe("cached tokens", () => {
  const TEXT = "The sea was calm.";
  const file = (dir: string): string => path.join(dir, "tokens.bin");

  function cached(dir: string, text: string): Int32Array {
    const cache = new TokenCache(TRAINED, dir);
    const ids = cache.encode(text);
    cache.save();
    return ids;
  }

  it("are the tokenizer's, and are read back", () => {
    const dir = tempFolder();
    const ids = loadTokenizer(TRAINED).encode(TEXT);
    expect(cached(dir, TEXT)).toEqual(ids);
    const stored = fs.readFileSync(file(dir));
    const { mtimeMs } = fs.statSync(file(dir));
    expect(cached(dir, TEXT)).toEqual(ids);
    expect(fs.statSync(file(dir)).mtimeMs).toBe(mtimeMs);
    // What is read is the cache: a fresh one that replaces a removed file is the same again.
    const cache = new TokenCache(TRAINED, dir);
    cache.encode(TEXT);
    fs.rmSync(file(dir));
    cache.save();
    expect(fs.readFileSync(file(dir)).equals(stored)).toBe(true);
  });

  it("of another text, or damaged, are made anew", () => {
    const dir = tempFolder();
    const ids = cached(dir, TEXT);
    expect(cached(dir, "A storm came up.")).not.toEqual(ids);
    expect(cached(dir, TEXT)).toEqual(ids);
    const bytes = fs.readFileSync(file(dir));
    for (const damaged of [bytes.subarray(0, 70), Buffer.concat([bytes, Buffer.alloc(4)])]) {
      fs.writeFileSync(file(dir), damaged);
      expect(cached(dir, TEXT)).toEqual(ids);
      expect(fs.readFileSync(file(dir)).equals(bytes)).toBe(true);
    }
  });
});
