// GGUF files of the trained model in llama.cpp: the same text in F16, the perplexity of the run in codes.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { sequentialWindows } from "../../lib/data/windows.ts";
import { evaluate, quantize } from "../../lib/index.ts";
import type { QuantizeOptions } from "../../lib/types.ts";
import { BOOKS, TRAINED } from "../helpers/fixture.ts";
import { sharedFolders } from "../helpers/temp-folder.ts";
import { type GgufModel, openGguf } from "./llama-cpp.ts";
import { distance, logits, say, type Written, withOurs, written } from "./ours.ts";

const PROMPTS = [
  "It was the best of times, it was the worst of times, it was",
  "Call me",
  "The old man looked at the sea and",
  '"I do not know what you mean," said',
  "CHAPTER 1\n\n",
  "In the year 1812 there were 3 or 4",
];
const NEW_TOKENS = 32;
/** Two best logits that are this close, in parts of the larger, may change places. */
const TIE = 1e-3;

const WINDOWS = 12;
const SEQLEN = 128;

const folder = sharedFolders();

/** Quantizes the fixture with little effort, and writes the format into its folder. */
async function run(options: Partial<QuantizeOptions>): Promise<string> {
  const out = path.join(folder("run"), "out");
  const small = { nsamples: 2, seqlen: 64, epochs: 1, device: "cpu" } as const;
  await quantize({ model: TRAINED, out, calib: BOOKS, ...small, ...options });
  return out;
}

function openFormat(out: string, format: string): Promise<GgufModel> {
  return openGguf(path.join(out, format, "model.gguf"), 512);
}

describe("a file in F16", () => {
  let out = "";
  let gguf: GgufModel;
  let ours: Written[] = [];

  beforeAll(async () => {
    out = await run({ wbits: 8, recipe: "rtn", format: ["gguf-f16"] });
    gguf = await openFormat(out, "gguf-f16");
    ours = await written(out, PROMPTS, NEW_TOKENS);
  });

  afterAll(() => gguf.close());

  it("is opened without a warning", () => {
    expect(gguf.warnings).toEqual([]);
    expect(gguf.fileType).toBe("MOSTLY_F16");
  });

  it("writes our text", async () => {
    const ties: string[] = [];
    for (const { prompt, ids, text } of ours) {
      expect(ids.length).toBe(NEW_TOKENS);
      const theirs: number[] = [];
      while (theirs.length < NEW_TOKENS) {
        const before = [...prompt, ...theirs];
        const next = await gguf.write(before, NEW_TOKENS - theirs.length);
        const same = next.findIndex((id, i) => id !== ids[theirs.length + i]);
        if (same < 0) {
          theirs.push(...next);
          break;
        }
        const [mine, other] = [ids[theirs.length + same] as number, next[same] as number];
        theirs.push(...next.slice(0, same));
        const gap = await gapOf(out, [...prompt, ...theirs], [mine, other]);
        ties.push(
          `'${gguf.decode([mine])}' before '${gguf.decode([other])}' by ${gap.toExponential(1)}`,
        );
        expect(gap, `after '${gguf.decode([...prompt, ...theirs])}'`).toBeLessThan(TIE);
        // At a tie ours is as good as the other, and what follows can be compared again.
        theirs.push(mine);
      }
      expect(theirs).toEqual(ids);
      expect(gguf.decode(theirs)).toBe(text);
    }
    say(`text of ${ours.length} prompts, ${NEW_TOKENS} tokens each: the same`);
    for (const tie of ties) say(`  but for a tie: ${tie} of the logit`);
  });

  it("gives our probabilities", async () => {
    const { prompt, ids } = ours[0] as Written;
    const all = [...prompt, ...ids];
    const theirs = await gguf.probabilities(all);
    const apart = await withOurs(out, (source) => distance(logits(source, all), theirs));
    say(`log-probabilities in F16: ${apart.toExponential(1)} apart`);
    expect(apart).toBeLessThan(3e-3);
  });
});

describe("a quantized file", () => {
  it.each([
    ["Q4_1", { wbits: 4, groupSize: 32 }],
    ["Q4_0", { wbits: 4, groupSize: 32, symmetric: true, recipe: "rtn" }],
    ["Q8_0", { wbits: 8, symmetric: true, recipe: "rtn" }],
  ] as const)("of %s has our perplexity", async (type, options) => {
    const out = await run({ ...options, format: ["gguf"] });
    const expected = await evaluate({
      model: out,
      text: BOOKS,
      seqlen: SEQLEN,
      windows: WINDOWS,
      device: "cpu",
    });
    const gguf = await openFormat(out, "gguf");
    expect(gguf.warnings).toEqual([]);
    expect(gguf.fileType).toBe(`MOSTLY_${type}`);
    const ids = Int32Array.from(gguf.encode(fs.readFileSync(BOOKS, "utf8")));
    const losses: number[] = [];
    for (const window of sequentialWindows(ids, SEQLEN, WINDOWS)) {
      losses.push(meanLoss(await gguf.probabilities([...window]), window));
    }
    await gguf.close();
    expect(losses.length).toBe(WINDOWS);
    const ppl = Math.exp(losses.reduce((sum, loss) => sum + loss, 0) / losses.length);
    const change = ppl / expected.ppl - 1;
    say(
      `perplexity at ${type}: ${ppl.toFixed(4)} in llama.cpp, ${expected.ppl.toFixed(4)} here, ` +
        `${(100 * change).toFixed(3)} % apart`,
    );
    expect(Math.abs(change)).toBeLessThan(0.005);
  });
});

/** Mean loss of the next tokens of a window. */
function meanLoss(probabilities: readonly Float32Array[], window: Int32Array): number {
  let sum = 0;
  for (let t = 0; t + 1 < window.length; t++) {
    sum -= Math.log(probabilities[t]?.[window[t + 1] as number] as number);
  }
  return sum / (window.length - 1);
}

/** How far our best two logits are apart, in parts of the larger; they must be those of the pair. */
async function gapOf(
  out: string,
  before: readonly number[],
  pair: readonly [number, number],
): Promise<number> {
  const row = await withOurs(out, (source) => logits(source, before).at(-1) as Float32Array);
  const best = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number));
  expect(best.slice(0, 2), `after ${before.length} tokens`).toEqual(pair);
  const [first, second] = pair.map((id) => row[id] as number) as [number, number];
  return (first - second) / Math.abs(first);
}
