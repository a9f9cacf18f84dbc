import * as fs from "node:fs";
import * as path from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createBpeCutter } from "../lib/data/bpe-cuts.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { writeFiles } from "./helpers/safetensors-file.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const fixtures = path.join(import.meta.dirname, "fixtures");
const model = path.join(fixtures, "llama-gqa-4m");
const text = readTextFile(path.join(fixtures, "books-test-head.txt"));

function readJson(file: string): Record<string, unknown> {
  return JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, unknown>;
}

/** The fixture's tokenizer without its word splitter, as SentencePiece models have it. */
function wholeTextTokenizer(): Record<string, unknown> {
  const json = readJson(path.join(model, "tokenizer.json"));
  return { ...json, pre_tokenizer: { ...(json["pre_tokenizer"] as object), use_regex: false } };
}

describe("the tokenizer", () => {
  it("gives the ids that the model's authors published", () => {
    const ids = loadTokenizer(model).encode(text);
    const golden = readJson(path.join(model, "golden.json"));
    expect([...ids.subarray(0, 64)]).toEqual(golden["first_ids_of_books_test"]);
  });

  it("decodes what it encoded", () => {
    const tokenizer = loadTokenizer(model);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    const odd = "\u00e4\ud83d\ude00 it 's  n't ,\r\n\t\u2014</s> end ";
    expect(tokenizer.decode(tokenizer.encode(odd))).toBe(odd);
    expect(tokenizer.encode("")).toHaveLength(0);
    expect(tokenizer.decode([])).toBe("");
  });

  it("gives the same ids whether long stretches are cut or not", () => {
    const json = wholeTextTokenizer();
    const dir = tempFolder();
    writeFiles(dir, { "tokenizer.json": json });
    const whole = new Tokenizer(json, {});
    const cut = loadTokenizer(dir);
    const expected = whole.encode(text, { add_special_tokens: false }).ids;
    expect([...cut.encode(text)]).toEqual(expected);
    const character = fc.constantFrom(..." \n\tabehst'.,-\u00e4\u2014\ud83d\ude00</s>");
    const sample = fc.string({ unit: character, minLength: 1, maxLength: 300 });
    fc.assert(
      fc.property(sample, (s) => {
        expect([...cut.encode(s)]).toEqual(whole.encode(s, { add_special_tokens: false }).ids);
      }),
      { numRuns: 200 },
    );
  });

  it("cuts only between characters that no merge joins, and not at all where that proves nothing", () => {
    const bpe = { type: "BPE", merges: ["a b", ["ab", "c"], ["\ud83d\ude00", "a"]] };
    expect(createBpeCutter(bpe)?.("abcab\ud83d\ude00aa")).toEqual([
      "abc",
      "ab",
      "\ud83d\ude00a",
      "a",
    ]);
    expect(createBpeCutter(bpe)?.("")).toEqual([]);
    expect(createBpeCutter({ ...bpe, ignore_merges: true })).toBeNull();
    expect(createBpeCutter({ ...bpe, end_of_word_suffix: "</w>" })).toBeNull();
    expect(createBpeCutter({ type: "Unigram" })).toBeNull();
    expect(createBpeCutter({ type: "BPE", merges: [7] })).toBeNull();
  });

  it("says what is missing or wrong", () => {
    const load = (files: Parameters<typeof writeFiles>[1]) => () => {
      const dir = tempFolder();
      writeFiles(dir, files);
      return loadTokenizer(dir);
    };
    expectAqError(load({}), "AQ_FILE", "has no tokenizer.json");
    expectAqError(load({ "tokenizer.model": "" }), "AQ_FILE", "only tokenizer.model");
    expectAqError(load({ "tokenizer.json": "{" }), "AQ_FORMAT", "not valid JSON");
    expectAqError(load({ "tokenizer.json": {} }), "AQ_MODEL", "cannot be used");
    const odd = { ...wholeTextTokenizer(), pre_tokenizer: { type: "Odd" } };
    expectAqError(load({ "tokenizer.json": odd }), "AQ_MODEL", "Odd");
    const base = wholeTextTokenizer();
    const poor = { ...base, model: { type: "BPE", vocab: { a: 2 }, merges: [] } };
    const tokenizer = load({ "tokenizer.json": poor })();
    expect([...tokenizer.encode("aa")]).toEqual([2, 2]);
  });
});
