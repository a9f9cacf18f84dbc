// GGUF files of random models, each with one feature of its own: biases, heads of another size, rotary
// frequencies that are scaled, a head that is not tied, rows that fill no block. Their probabilities in
// llama.cpp are ours.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { quantize } from "../../lib/index.ts";
import { tinyFixture, tinyFixtures } from "../helpers/fixture.ts";
import { sharedFolders } from "../helpers/temp-folder.ts";
import { openGguf } from "./llama-cpp.ts";
import { distance, logits, say, withOurs } from "./ours.ts";

/**
 * 96 tokens, as many as the smallest model has rows: start and end of a text, then characters of one byte
 * in the spelling of byte-level BPE: letters, digits, most marks, space and line feed.
 */
const SPECIAL = ["<s>", "</s>"];
const MARKS = [...Array(92).keys()].map((i) => String.fromCharCode(33 + i));
const TOKENS = [...SPECIAL, ...MARKS, "Ġ", "Ċ"];
const TOKENIZER = {
  version: "1.0",
  added_tokens: SPECIAL.map((content, id) => ({ id, content, special: true })),
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel" },
  model: {
    type: "BPE",
    vocab: Object.fromEntries(TOKENS.map((text, id) => [text, id])),
    merges: [],
  },
};

/** llama.cpp rounds what a product reads: to F16 before F16, to 8 bits in blocks of 32 before codes. */
const HALF = 3e-3;
const BLOCKS = 0.05;

const folder = sharedFolders();
const apart: string[] = [];

afterAll(() => say(`log-probabilities of random models, F16 and 4 bits: ${apart.join(", ")}`));

/** A copy of a fixture that can be calibrated: with a tokenizer. */
function withTokenizer(name: string): { readonly model: string; readonly calib: string } {
  const dir = folder(name);
  const model = path.join(dir, "model");
  fs.cpSync(tinyFixture(name), model, { recursive: true });
  fs.writeFileSync(path.join(model, "tokenizer.json"), JSON.stringify(TOKENIZER));
  const calib = path.join(dir, "text.txt");
  fs.writeFileSync(calib, "The quick brown fox jumps over 13 lazy dogs. ".repeat(40));
  return { model, calib };
}

/** Ids of all kinds in no order, as far as the model can see. */
function someIds(tokens: number): number[] {
  return Array.from({ length: tokens }, (_, i) => (i * i * 7 + i * 13 + 5) % TOKENS.length);
}

describe("a random model in llama.cpp gives our probabilities", () => {
  it.each(tinyFixtures())("%s", async (name) => {
    const { model, calib } = withTokenizer(name);
    const out = path.join(path.dirname(model), "out");
    await quantize({
      model,
      out,
      calib,
      nsamples: 2,
      seqlen: 32,
      wbits: 4,
      groupSize: 32,
      recipe: "rtn",
      device: "cpu",
      format: ["aq", "gguf", "gguf-f16"],
    });
    // What --out itself holds is rounded to the dtype of the model; here are the codes.
    const { ours, ids } = await withOurs(path.join(out, "aq-packed"), (source) => {
      const ids = someIds(Math.min(source.model.shape.maxTokens, 300));
      return { ids, ours: logits(source, ids) };
    });
    const far: number[] = [];
    for (const format of ["gguf-f16", "gguf"]) {
      const gguf = await openGguf(path.join(out, format, "model.gguf"), 512);
      expect(gguf.warnings).toEqual([]);
      far.push(distance(ours, await gguf.probabilities(ids)));
      await gguf.close();
    }
    apart.push(`${name} ${far.map((x) => x.toExponential(1)).join(" ")}`);
    const [half, blocks] = far as [number, number];
    expect(half).toBeLessThan(HALF);
    expect(blocks).toBeLessThan(BLOCKS);
  });
});
