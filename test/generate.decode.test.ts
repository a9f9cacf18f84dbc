// Decoding with caches gives what the whole sequence at once gives, and many sequences together what
// each gives alone.
import path from "node:path";
import { describe, expect, it } from "vitest";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { exportRun } from "../lib/export-run.ts";
import { Decoder } from "../lib/generate/decoder.ts";
import type { KvType } from "../lib/generate/kv-cache.ts";
import { type LanguageModel, openLanguageModel } from "../lib/generate/open.ts";
import { load, quantize } from "../lib/index.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { packageRoot } from "../lib/util/package.ts";
import { argmax } from "./helpers/argmax.ts";
import { stepLogits } from "./helpers/step-logits.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { withTokenizer } from "./helpers/tiny-tokenizer.ts";

const FIXTURES = path.join(packageRoot(), "test", "fixtures");
const CALIB = path.join(FIXTURES, "books-test-head.txt");
const PROMPT = "It was the best of times, it was the worst of times, it was";

/** Random models of the families that are built like LLaMA. */
const KIN = ["mistral", "mistral-window", "qwen2", "qwen3", "qwen3-biases"];

const tempFolder = tempFolders();

/** Largest difference of two sets of logits, in parts of the largest logit. */
function distance(actual: Float32Array, expected: Float32Array): number {
  const top = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  return (
    actual.reduce((most, x, i) => Math.max(most, Math.abs(x - (expected[i] as number))), 0) / top
  );
}

/** Logits after every token, the prompt read in pieces of `piece`. */
async function decode(
  source: LanguageModel,
  ids: Int32Array,
  piece: number,
  kv?: KvType,
  join?: boolean,
): Promise<Float32Array[]> {
  const decoder = new Decoder(source, { slots: 2, capacity: ids.length, kv, join });
  try {
    const logits: Float32Array[] = [];
    for (let at = 0; at < ids.length; at += piece) {
      const tokens = [...ids.slice(at, at + piece)].map((id, i) => ({
        slot: 1,
        position: at + i,
        id,
      }));
      logits.push(...(await stepLogits(decoder, tokens, [...tokens.keys()])));
    }
    return logits;
  } finally {
    decoder.dispose();
  }
}

async function expectSame(dir: string, kv: KvType | undefined, limit: number): Promise<void> {
  const live = liveTensors();
  const source = openLanguageModel(dir, "cpu");
  try {
    const ids = source.tokenizer.encode(PROMPT).slice(0, source.model.shape.maxTokens);
    const all = forwardLogits(source, ids);
    const vocabulary = source.model.shape.vocabulary;
    for (const piece of [1, 5]) {
      const rows = await decode(source, ids, piece, kv);
      expect(rows.length).toBe(ids.length);
      for (const [t, row] of rows.entries()) {
        const expected = all.subarray(t * vocabulary, (t + 1) * vocabulary);
        expect(distance(row, expected), `token ${t}, pieces of ${piece}`).toBeLessThan(limit);
      }
    }
  } finally {
    source.close();
  }
  expect(liveTensors()).toBe(live);
}

describe("decoding", () => {
  it.each(["llama-gqa-4m", "opt-5m"])("of %s gives the logits of the whole sequence", (name) =>
    expectSame(path.join(FIXTURES, name), undefined, 1e-5),
  );

  it.each(KIN)("of %s gives the logits of the whole sequence", (name) =>
    expectSame(withTokenizer(tempFolder(), name).model, undefined, 1e-5),
  );

  it("with caches in 16 bits is close", () =>
    expectSame(path.join(FIXTURES, "llama-gqa-4m"), "f16", 5e-3));

  it("of a model in 4 bits keeps keys and values as codes", async () => {
    const out = path.join(tempFolder(), "w4a4");
    await quantize({
      model: path.join(FIXTURES, "llama-gqa-4m"),
      out,
      wbits: 4,
      abits: 4,
      calib: CALIB,
      nsamples: 2,
      seqlen: 64,
      recipe: "rtn",
    });
    await expectSame(out, undefined, 1e-4);
    await expectSame(out, "f32", 1e-4);
  });

  // Few tokens are multiplied as whole numbers, many as what these stand for: a code of a token may fall
  // the other way.
  it.each([
    [16, 1e-5],
    [8, 2e-2],
  ])("of codes of 8 bits with activations in %i bits", async (abits, limit) => {
    const [run, packed] = [path.join(tempFolder(), "run"), path.join(tempFolder(), "packed")];
    await quantize({
      model: path.join(FIXTURES, "llama-gqa-4m"),
      out: run,
      wbits: 8,
      abits,
      calib: CALIB,
      nsamples: 1,
      seqlen: 64,
      recipe: "rtn",
    });
    await exportRun({ run, format: "aq", out: packed });
    await expectSame(packed, undefined, limit);
  });

  it("in NVFP4 leaves keys and values as they are", async () => {
    const [run, packed] = [path.join(tempFolder(), "run"), path.join(tempFolder(), "packed")];
    await quantize({
      model: path.join(FIXTURES, "llama-gqa-4m"),
      out: run,
      scheme: "NVFP4",
      calib: CALIB,
      nsamples: 1,
      seqlen: 64,
      recipe: "rtn",
    });
    await exportRun({ run, format: "compressed-tensors", out: packed });
    // An element that falls the other way changes a number by a third.
    for (const dir of [run, packed]) await expectSame(dir, undefined, 0.1);
  });
});

/** As decoders on a GPU run blocks: linears that read the same input are one. */
describe("decoding with linears that are joined", () => {
  async function expectJoined(dir: string): Promise<void> {
    const live = liveTensors();
    const source = openLanguageModel(dir, "cpu");
    try {
      const ids = source.tokenizer.encode(PROMPT).slice(0, source.model.shape.maxTokens);
      for (const piece of [1, 7]) {
        const apart = await decode(source, ids, piece, "f16");
        const joined = await decode(source, ids, piece, "f16", true);
        for (const [t, row] of joined.entries()) {
          const expected = apart[t] as Float32Array;
          expect(distance(row, expected), `token ${t}, pieces of ${piece}`).toBeLessThan(5e-5);
        }
      }
    } finally {
      source.close();
    }
    expect(liveTensors()).toBe(live);
  }

  it.each(["llama-gqa-4m", "opt-5m"])("gives the logits of %s", (name) =>
    expectJoined(path.join(FIXTURES, name)),
  );

  it.each(KIN)("gives the logits of %s", (name) =>
    expectJoined(withTokenizer(tempFolder(), name).model),
  );

  it.each([
    ["qwen2", { wbits: 4, groupSize: 32 }],
    ["qwen3", { wbits: 4 }],
    ["qwen3-biases", { wbits: 3, hadamard: "down" as const }],
    ["mistral", { wbits: 4, keep: ["*.q_proj"] }],
  ])("gives the logits of codes of %s, %o", async (name, options) => {
    const [run, packed] = [path.join(tempFolder(), "run"), path.join(tempFolder(), "packed")];
    const small = { nsamples: 1, seqlen: 32, recipe: "rtn" } as const;
    await quantize({ ...withTokenizer(tempFolder(), name), out: run, ...small, ...options });
    await exportRun({ run, format: "aq", out: packed });
    await expectJoined(packed);
  });

  it.each([
    ["llama-gqa-4m", { wbits: 4, groupSize: 32 }],
    ["opt-5m", { wbits: 3 }],
    // Gate and up of the first block are of two kinds.
    ["llama-gqa-4m", { wbits: 4, keep: ["model.layers.0.mlp.up_proj"] }],
    // Query, key and value stay apart, gate and up do not.
    ["llama-gqa-4m", { wbits: 4, keep: ["model.layers.0.self_attn.q_proj"] }],
    ["llama-gqa-4m", { wbits: 4, hadamard: "down" as const }],
  ])("gives the logits of codes of %s, %o", async (name, options) => {
    const [run, packed] = [path.join(tempFolder(), "run"), path.join(tempFolder(), "packed")];
    await quantize({
      model: path.join(FIXTURES, name),
      out: run,
      calib: CALIB,
      nsamples: 1,
      seqlen: 64,
      recipe: "rtn",
      ...options,
    });
    await exportRun({ run, format: "aq", out: packed });
    await expectJoined(packed);
  });
});

describe("generate", () => {
  it("writes the most likely tokens, streamed", async () => {
    const live = liveTensors();
    const dir = path.join(FIXTURES, "llama-gqa-4m");
    const model = await load(dir, { device: "cpu" });
    let text = "";
    const ids: number[] = [];
    const run = model.generate(PROMPT, { maxTokens: 12 });
    let finish: string | undefined;
    for (;;) {
      const { value, done } = await run.next();
      if (done) {
        finish = value;
        break;
      }
      text += value.text;
      if (value.id !== undefined) ids.push(value.id);
    }
    expect(finish).toBe("length");
    expect(ids.length).toBe(12);
    const source = openLanguageModel(dir, "cpu");
    const prompt = source.tokenizer.encodePrompt(PROMPT);
    const all = [...prompt];
    for (let i = 0; i < 12; i++) {
      const logits = forwardLogits(source, Int32Array.from(all));
      all.push(argmax(logits.subarray(-source.model.shape.vocabulary)));
    }
    expect(ids).toEqual(all.slice(prompt.length));
    const whole = source.tokenizer.decode(all);
    expect(whole.endsWith(text)).toBe(true);
    source.close();
    await model.dispose();
    expect(liveTensors()).toBe(live);
  });

  it("of many prompts at once gives what each gives alone, also with fewer places than prompts", async () => {
    const dir = path.join(FIXTURES, "llama-gqa-4m");
    const prompts = [PROMPT, "Call me", "The", `${PROMPT} ${PROMPT}`, "Sir, I have"];
    const write = async (slots: number, together: boolean): Promise<string[]> => {
      const model = await load(dir, { device: "cpu", slots });
      const one = async (prompt: string, seed: number): Promise<string> => {
        let text = "";
        const options = { maxTokens: 10, temperature: 0.8, topP: 0.9, seed };
        for await (const piece of model.generate(prompt, options)) text += piece.text;
        return text;
      };
      const texts: string[] = [];
      if (together) texts.push(...(await Promise.all(prompts.map(one))));
      else for (const [i, prompt] of prompts.entries()) texts.push(await one(prompt, i));
      await model.dispose();
      return texts;
    };
    const alone = await write(1, false);
    expect(await write(3, true)).toEqual(alone);
    expect(await write(8, true)).toEqual(alone);
  });

  it("stops when it is told to, and frees the place", async () => {
    const live = liveTensors();
    const model = await load(path.join(FIXTURES, "opt-5m"), { device: "cpu" });
    const control = new AbortController();
    let pieces = 0;
    await expect(async () => {
      for await (const _ of model.generate(PROMPT, { signal: control.signal })) {
        if (++pieces === 3) control.abort();
      }
    }).rejects.toMatchObject({ code: "AQ_STOPPED" });
    expect(pieces).toBe(3);
    for await (const _ of model.generate(PROMPT)) {
      if (++pieces === 6) break;
    }
    let rest = 0;
    for await (const _ of model.generate("a", { maxTokens: 4 })) rest++;
    expect(rest).toBe(4);
    expect(model.load).toEqual({ waiting: 0, active: 0 });
    await model.dispose();
    expect(liveTensors()).toBe(live);
  });
});
