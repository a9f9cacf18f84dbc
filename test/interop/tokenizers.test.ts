// Tokenizers in GGUF files: llama.cpp cuts texts into the ids that the model's own tokenizer gives. One
// run is written with tokenizers of every kind that the writer knows, made from the trained one.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { loadTokenizer } from "../../lib/data/tokenizer.ts";
import { exportRun, quantize } from "../../lib/index.ts";
import { BOOKS, TRAINED } from "../helpers/fixture.ts";
import { sharedFolders } from "../helpers/temp-folder.ts";
import { openGguf } from "./llama-cpp.ts";
import { say } from "./ours.ts";

interface Bpe {
  readonly vocab: Readonly<Record<string, number>>;
  readonly merges: readonly (readonly [string, string])[];
}

type Json = Record<string, unknown>;

const folder = sharedFolders();
let out = "";
let trained: Json & { readonly model: Json & Bpe };

beforeAll(async () => {
  out = path.join(folder("run"), "out");
  const settings = { wbits: 8, recipe: "rtn", nsamples: 2, seqlen: 64, device: "cpu" } as const;
  await quantize({ model: TRAINED, out, calib: BOOKS, ...settings });
  trained = JSON.parse(fs.readFileSync(path.join(TRAINED, "tokenizer.json"), "utf8"));
});

/** A splitter by expression before the bytes, as LLaMA 3 and Qwen have it. */
function splitBy(digits: string): Json {
  const Regex =
    `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}|` +
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  return inTurn(
    { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false },
    { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
  );
}

/** The same of Mistral Nemo. */
const TEKKEN: Json = inTurn(
  {
    type: "Split",
    pattern: {
      Regex:
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|" +
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|" +
        "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    },
    behavior: "Isolated",
    invert: false,
  },
  { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
);

function inTurn(...pretokenizers: readonly Json[]): Json {
  return { type: "Sequence", pretokenizers };
}

/** The trained tokenizer with another splitter. */
function bytesSplit(pre_tokenizer: Json, model: Json = {}): Json {
  return { ...trained, pre_tokenizer, model: { ...trained.model, ...model } };
}

/**
 * Pieces as LLaMA 2 has them: spaces are marked, every byte has a token, and a piece may be merged from
 * any two pieces. Made from the trained tokens that are ASCII, as many as the embedding has rows for.
 */
function pieces(): Json {
  const control = ["<unk>", "<s>", "</s>"];
  const bytes = [...Array(256).keys()].map(
    (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const spell = (text: string): string => text.replaceAll("Ġ", "▁");
  const isPlain = (text: string): boolean => /^[\x21-\x7e▁]+$/.test(text);
  const merged = trained.model.merges.map(([left, right]) => spell(left + right));
  const rows = Object.keys(trained.model.vocab).length;
  const characters = Object.keys(trained.model.vocab)
    .map(spell)
    .filter((text) => text.length === 1 && isPlain(text));
  const texts = [...new Set([...control, ...bytes, ...characters, ...merged.filter(isPlain)])];
  const vocab = Object.fromEntries(texts.slice(0, rows).map((text, id) => [text, id]));
  const merges = Object.keys(vocab)
    .filter((text) => text.length > 1 && isPlain(text) && !control.includes(text))
    .filter((text) => !bytes.includes(text))
    .flatMap((text) =>
      [...Array(text.length - 1).keys()]
        .map((i) => [text.slice(0, i + 1), text.slice(i + 1)] as const)
        .filter(([left, right]) => left in vocab && right in vocab),
    );
  return {
    version: "1.0",
    added_tokens: control.map((content, id) => ({ id, content, special: true, normalized: false })),
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}

/** Texts on whose words splitters differ. */
const HARD = [
  "",
  " ",
  "  two  spaces  ",
  "tab\tand\nline\r\nends\n\n\n",
  "don't we'll I'M THEY'RE",
  "12345 3.14159 1,000,000 1st",
  "naïve café — “quotes” … £5 ½",
  "日本語 和 한국어 العربية עברית",
  "🙂👩‍👩‍👧 e\u0301 \u00a0\u200b",
  "snake_case camelCase a-b/c\\d (x)[y]{z} <|end|> #!",
];

describe("llama.cpp has our tokens for a text, and for what is hard to split, with a tokenizer", () => {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
  it.each([
    ["as GPT-2's", () => trained],
    [
      "as SmolLM's",
      () => bytesSplit(inTurn({ type: "Digits", individual_digits: true }, byteLevel)),
    ],
    ["as LLaMA 3's", () => bytesSplit(splitBy("\\p{N}{1,3}"), { ignore_merges: true })],
    ["as Qwen 2's", () => bytesSplit(splitBy("\\p{N}"))],
    ["as Mistral's newer ones", () => bytesSplit(TEKKEN, { ignore_merges: true })],
    ["as LLaMA 2's", pieces],
  ] as const)("%s", async (name, make) => {
    const target = path.join(folder("gguf"), "gguf");
    fs.writeFileSync(path.join(out, "tokenizer.json"), JSON.stringify(make()));
    await exportRun({ run: out, format: "gguf-f16", out: target });
    const ours = loadTokenizer(out);
    const gguf = await openGguf(path.join(target, "model.gguf"), 512);
    try {
      expect(gguf.warnings).toEqual([]);
      const book = fs.readFileSync(BOOKS, "utf8");
      const ids = gguf.encode(book);
      expect(ids).toEqual([...ours.encode(book)]);
      say(`tokens of ${book.length} characters by a tokenizer ${name}: ${ids.length}, the same`);
      for (const text of HARD) {
        expect(gguf.encode(text), JSON.stringify(text)).toEqual([...ours.encode(text)]);
      }
    } finally {
      await gguf.close();
    }
  });
});
