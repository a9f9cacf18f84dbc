/** Random models with a tokenizer, so that they can be calibrated and can write. */
import * as fs from "node:fs";
import * as path from "node:path";
import { inSingle, tinyFixture } from "./fixture.ts";

/**
 * 96 tokens, as many as the smallest model has rows: start and end of a text, then characters of one byte
 * in the spelling of byte-level BPE: letters, digits, most marks, space and line feed.
 */
const SPECIAL = ["<s>", "</s>"];
const MARKS = [...Array(92).keys()].map((i) => String.fromCharCode(33 + i));
export const TINY_TOKENS: readonly string[] = [...SPECIAL, ...MARKS, "Ġ", "Ċ"];
const TOKENIZER = {
  version: "1.0",
  added_tokens: SPECIAL.map((content, id) => ({ id, content, special: true })),
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel" },
  model: {
    type: "BPE",
    vocab: Object.fromEntries(TINY_TOKENS.map((text, id) => [text, id])),
    merges: [],
  },
};

export interface TinyModel {
  /** The folder, and a text of its characters. */
  readonly model: string;
  readonly calib: string;
}

/** A copy of a random model below `dir`, with a tokenizer; `single`: in float32. */
export function withTokenizer(dir: string, name: string, single = false): TinyModel {
  const model = path.join(dir, "model");
  fs.mkdirSync(model);
  if (single) inSingle(tinyFixture(name), model);
  else fs.cpSync(tinyFixture(name), model, { recursive: true });
  fs.writeFileSync(path.join(model, "tokenizer.json"), JSON.stringify(TOKENIZER));
  const calib = path.join(dir, "text.txt");
  fs.writeFileSync(calib, "The quick brown fox jumps over 13 lazy dogs. ".repeat(40));
  return { model, calib };
}
