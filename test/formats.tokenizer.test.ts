// Tokenizers as llama.cpp wants them: which kind, how words are split, what stands at the ends.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GgufValue } from "../lib/formats/gguf-file.ts";
import { splitterName } from "../lib/formats/gguf-splitter.ts";
import { ggufTokenizer } from "../lib/formats/gguf-tokenizer.ts";
import { expectAqError } from "./helpers/expect-error.ts";

let temp = "";

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

interface Files {
  readonly tokenizer: object;
  readonly settings?: object;
  readonly config?: Record<string, unknown>;
  readonly rows?: number;
  readonly template?: string;
}

function keysOf({ tokenizer, settings = {}, config = {}, rows = 16, template }: Files): {
  readonly keys: Record<string, GgufValue["value"]>;
  readonly notes: readonly string[];
} {
  const dir = fs.mkdtempSync(path.join(temp, "model-"));
  fs.writeFileSync(path.join(dir, "tokenizer.json"), JSON.stringify(tokenizer));
  fs.writeFileSync(path.join(dir, "tokenizer_config.json"), JSON.stringify(settings));
  if (template) fs.writeFileSync(path.join(dir, "chat_template.jinja"), template);
  const { keys, notes } = ggufTokenizer(dir, rows, config);
  const prefix = /^tokenizer\.(ggml\.)?/;
  return {
    keys: Object.fromEntries([...keys].map(([key, { value }]) => [key.replace(prefix, ""), value])),
    notes,
  };
}

/** As LLaMA 2 has it: pieces with a mark for spaces, bytes for what has no piece. */
const PIECES = {
  added_tokens: [
    { id: 0, content: "<unk>", special: true },
    { id: 1, content: "<s>", special: true },
    { id: 2, content: "</s>", special: true },
  ],
  normalizer: {
    type: "Sequence",
    normalizers: [
      { type: "Prepend", prepend: "▁" },
      { type: "Replace", pattern: { String: " " }, content: "▁" },
    ],
  },
  pre_tokenizer: null,
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  },
  model: {
    type: "BPE",
    unk_token: "<unk>",
    byte_fallback: true,
    vocab: {
      "<unk>": 0,
      "<s>": 1,
      "</s>": 2,
      "<0x00>": 3,
      "<0xFF>": 4,
      "▁t": 5,
      he: 6,
      "▁the": 7,
      "▁": 8,
      t: 9,
      h: 10,
      e: 11,
    },
    merges: ["▁ t", "h e", "▁t he"],
  },
};

describe("a tokenizer of pieces", () => {
  it("is SentencePiece's, scored in the order in which tokens are merged", () => {
    const { keys, notes } = keysOf({
      tokenizer: PIECES,
      settings: { unk_token: "<unk>" },
      rows: 13,
    });
    expect(notes).toEqual([]);
    expect(keys).toMatchObject({ model: "llama", pre: "default", unknown_token_id: 0 });
    expect(keys["token_type"]).toEqual([2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 5]);
    const scores = keys["scores"] as number[];
    const [t, he, the] = [5, 6, 7].map((id) => scores[id] as number);
    expect(t).toBeGreaterThan(he as number);
    expect(he).toBeGreaterThan(the as number);
    expect(keys).not.toHaveProperty("merges");
  });

  it("says what it puts around a text", () => {
    const settings = { bos_token: { content: "<s>" }, eos_token: "</s>" };
    expect(keysOf({ tokenizer: PIECES, settings }).keys).toMatchObject({
      bos_token_id: 1,
      eos_token_id: 2,
      add_bos_token: true,
      add_eos_token: false,
      add_space_prefix: true,
    });
    const said = { ...settings, add_bos_token: false, add_eos_token: true };
    expect(keysOf({ tokenizer: PIECES, settings: said }).keys).toMatchObject({
      add_bos_token: false,
      add_eos_token: true,
    });
  });
});

describe("special tokens", () => {
  it("come from config.json where the tokenizer does not name them; absent ones are left out", () => {
    const { keys } = keysOf({
      tokenizer: PIECES,
      config: { eos_token_id: [2, 0], bos_token_id: null },
    });
    expect(keys["eos_token_id"]).toBe(2);
    expect(keys).not.toHaveProperty("bos_token_id");
    expect(keys).not.toHaveProperty("padding_token_id");
  });

  it("a chat template is found in either place", () => {
    const settings = { chat_template: [{ name: "default", template: "{{ a }}" }] };
    expect(keysOf({ tokenizer: PIECES, settings }).keys["chat_template"]).toBe("{{ a }}");
    expect(keysOf({ tokenizer: PIECES, template: "{{ b }}" }).keys["chat_template"]).toBe(
      "{{ b }}",
    );
  });
});

describe("byte-level splitters", () => {
  const bytes = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
  const split = (Regex: string): object => ({
    type: "Sequence",
    pretokenizers: [{ type: "Split", pattern: { Regex }, behavior: "Isolated" }, bytes],
  });
  const rest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  const start = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
  const tekken =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|" +
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|" +
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

  it.each<[string, object, string]>([
    ["GPT-2", { type: "ByteLevel", add_prefix_space: false }, "gpt-2"],
    ["LLaMA 3", split(`${start}\\p{N}{1,3}${rest}`), "llama-bpe"],
    ["Qwen 2", split(`${start}\\p{N}${rest}`), "qwen2"],
    ["Mistral Nemo", split(tekken), "tekken"],
    [
      "SmolLM",
      {
        type: "Sequence",
        pretokenizers: [
          { type: "Digits", individual_digits: true },
          { type: "ByteLevel", add_prefix_space: false, use_regex: true },
        ],
      },
      "smollm",
    ],
  ])("of %s has a name", (_, preTokenizer, name) => {
    expect(splitterName(preTokenizer)).toEqual({ name, isGuess: false });
  });

  it("that are not known are a guess, and the file's notes say so", () => {
    expect(splitterName(split("\\w+"))).toEqual({ name: "default", isGuess: true });
    expect(splitterName({ type: "Metaspace" })).toBeNull();
    const model = { type: "BPE", vocab: { a: 0 }, merges: [] };
    const { keys, notes } = keysOf({ tokenizer: { pre_tokenizer: split("\\w+"), model }, rows: 1 });
    expect(keys).toMatchObject({ model: "gpt2", pre: "default", tokens: ["a"] });
    expect(notes.join()).toContain("other tokens");
  });
});

describe("what does not fit", () => {
  it("is refused with the reason", () => {
    const unigram = { model: { type: "Unigram", vocab: [["a", -1]] } };
    expectAqError(() => keysOf({ tokenizer: unigram }), "AQ_MODEL", '"Unigram"', "BPE");
    expectAqError(() => keysOf({ tokenizer: PIECES, rows: 5 }), "AQ_MODEL", "embedding has 5 rows");
    const broken = { ...PIECES, model: { ...PIECES.model, merges: ["ab"] } };
    expectAqError(() => keysOf({ tokenizer: broken }), "AQ_FORMAT", "no pair");
    const empty = fs.mkdtempSync(path.join(temp, "empty-"));
    expectAqError(() => ggufTokenizer(empty, 5, {}), "AQ_FILE", "tokenizer.json");
  });
});
