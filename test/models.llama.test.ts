// LLaMA and kin against golden values that transformers computed in float32 on the same stored weights, and
// what is said of checkpoints that cannot be used.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { forwardLogits, perplexity } from "../lib/eval/perplexity.ts";
import { evaluate } from "../lib/evaluate.ts";
import { inspect } from "../lib/inspect.ts";
import { loadBlock, loadOuter } from "../lib/models/load.ts";
import { openModel } from "../lib/models/registry.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import {
  BOOKS,
  type Changes,
  copyFixture,
  TRAINED,
  tinyFixture,
  tinyFixtures,
  withModel,
} from "./helpers/fixture.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { numbersOf, readTensors, type StoredTensor, tensorNamed } from "./helpers/tensor-file.ts";

const tempFolder = tempFolders();

let live = 0;
beforeEach(() => {
  live = liveTensors();
});
afterEach(() => {
  expect(liveTensors()).toBe(live);
});

/** |a - b| / |b|, Frobenius. */
function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let apart = 0;
  let size = 0;
  for (let i = 0; i < b.length; i++) {
    apart += ((a[i] as number) - (b[i] as number)) ** 2;
    size += (b[i] as number) ** 2;
  }
  return Math.sqrt(apart / size);
}

interface Golden {
  readonly ids: Int32Array;
  readonly logits: Float64Array;
  readonly hidden: readonly Float64Array[];
}

function readGolden(dir: string): Golden {
  const tensors = readTensors(path.join(dir, "golden.safetensors"));
  const hidden = [...tensors.keys()].filter((name) => name.startsWith("hidden.")).sort();
  return {
    ids: Int32Array.from(numbersOf(tensorNamed(tensors, "input_ids"))),
    logits: numbersOf(tensorNamed(tensors, "logits")),
    hidden: hidden.map((name) => numbersOf(tensorNamed(tensors, name))),
  };
}

/** The last golden state is the one after the final norm. */
function finalNorm(state: Float32Array, gain: Float64Array, eps: number): Float64Array {
  const width = gain.length;
  return Float64Array.from(state, (value, i) => {
    const token = state.subarray(i - (i % width), i - (i % width) + width);
    const mean = token.reduce((sum, x) => sum + x * x, 0) / width;
    return (value / Math.sqrt(mean + eps)) * (gain[i % width] as number);
  });
}

function finalGain(dir: string): Float64Array {
  const files = fs.readdirSync(dir).filter((name) => /^model.*\.safetensors$/.test(name));
  const all = files.flatMap((file) => [...readTensors(path.join(dir, file))]);
  const norm = all.find(([name]) => /^(model\.)?norm\.weight$/.test(name));
  return numbersOf((norm as [string, StoredTensor])[1]);
}

/** Largest relative error of the states, and that of the logits. */
function compareWithGolden(dir: string, golden: Golden = readGolden(dir)) {
  const states: Float32Array[] = [];
  const { logits, eps } = withModel(dir, (source) => ({
    logits: forwardLogits(source, golden.ids, (state) => states.push(state)),
    eps: source.checkpoint.config["rms_norm_eps"] as number,
  }));
  expect(states.length).toBe(golden.hidden.length);
  const last = states.length - 1;
  const errors = golden.hidden.map((expected, i) => {
    const state = states[i] as Float32Array;
    return relativeError(i === last ? finalNorm(state, finalGain(dir), eps) : state, expected);
  });
  return { logits: relativeError(logits, golden.logits), hidden: Math.max(...errors), raw: logits };
}

describe("logits and hidden states equal transformers'", () => {
  it("for the trained model", () => {
    const { logits, hidden } = compareWithGolden(TRAINED);
    expect(logits).toBeLessThan(1e-5);
    expect(hidden).toBeLessThan(1e-5);
  });

  it.each(tinyFixtures())("for %s", (name) => {
    const { logits, hidden } = compareWithGolden(tinyFixture(name));
    expect(logits).toBeLessThan(1e-5);
    expect(hidden).toBeLessThan(1e-5);
  });

  const old = tinyFixtures().filter((name) =>
    fs.existsSync(path.join(tinyFixture(name), "config.old.json")),
  );
  it.each(old)("for %s in the old spelling of its config", (name) => {
    const dir = tinyFixture(name);
    const text = fs.readFileSync(path.join(dir, "config.old.json"), "utf8");
    const copy = copyFixture(dir, tempFolder(), { config: () => JSON.parse(text) as object });
    const golden = readGolden(dir);
    const { logits, raw } = compareWithGolden(copy, golden);
    expect(logits).toBeLessThan(1e-5);
    expect(raw).toEqual(compareWithGolden(dir, golden).raw);
  });

  it("with rotary scaling that matters: without it the logits are far off", () => {
    expect(old).toEqual(["rope-linear", "rope-llama3"]);
    for (const name of old) {
      const plain = copyFixture(tinyFixture(name), tempFolder(), {
        config: ({ rope_parameters: _, ...rest }) => ({ ...rest, rope_theta: 10000 }),
      });
      expect(compareWithGolden(plain, readGolden(tinyFixture(name))).logits).toBeGreaterThan(1e-3);
    }
  });
});

/** Mean next-token loss of logits [T, V], in float64. */
function meanLoss(logits: ArrayLike<number>, ids: Int32Array): number {
  const vocabulary = logits.length / ids.length;
  let sum = 0;
  for (let t = 0; t + 1 < ids.length; t++) {
    const row = Array.from({ length: vocabulary }, (_, v) => logits[t * vocabulary + v] as number);
    const max = Math.max(...row);
    const total = row.reduce((acc, x) => acc + Math.exp(x - max), 0);
    sum += max + Math.log(total) - (row[ids[t + 1] as number] as number);
  }
  return sum / (ids.length - 1);
}

describe("perplexity", () => {
  it("is that of transformers' logits on the first tokens of the books", async () => {
    const { ids, logits } = readGolden(TRAINED);
    const result = await withModel(TRAINED, (source) => perplexity(source, [ids]));
    expect(result).toMatchObject({ windows: 1, tokens: 64, stderr: 0 });
    expect(result.ppl / Math.exp(meanLoss(logits, ids))).toBeCloseTo(1, 5);
  });

  it("is exp of the mean over windows, with the standard error of their spread", async () => {
    const ids = loadTokenizer(TRAINED).encode(readTextFile(BOOKS));
    const windows = sequentialWindows(ids, 48, 3);
    const losses = windows.map((window) =>
      withModel(TRAINED, (source) => meanLoss(forwardLogits(source, window), window)),
    );
    const mean = losses.reduce((sum, x) => sum + x, 0) / 3;
    const spread = Math.sqrt(losses.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 2);
    const running: number[] = [];
    const result = await withModel(TRAINED, (source) =>
      perplexity(source, windows, { onWindow: (_, __, ppl) => running.push(ppl) }),
    );
    expect(result.ppl / Math.exp(mean)).toBeCloseTo(1, 6);
    expect(result.stderr / ((Math.exp(mean) * spread) / Math.sqrt(3))).toBeCloseTo(1, 5);
    expect(running.map((ppl, i) => ppl / Math.exp(average(losses.slice(0, i + 1))))).toEqual(
      [1, 1, 1].map((one) => expect.closeTo(one, 6)),
    );
    const text = await evaluate({ model: TRAINED, text: BOOKS, seqlen: 48, windows: 3 });
    expect(text).toEqual(result);
  });

  it("does not change when windows go through the model in turns", async () => {
    const { ids } = readGolden(TRAINED);
    const windows = [ids.subarray(0, 20), ids.subarray(20, 40), ids.subarray(40, 60)];
    const alone = await Promise.all(
      windows.map((window) => withModel(TRAINED, (source) => perplexity(source, [window]))),
    );
    const all = await withModel(TRAINED, (source) => perplexity(source, windows));
    expect(Math.log(all.ppl)).toBeCloseTo(average(alone.map(({ ppl }) => Math.log(ppl))), 12);
  });

  it("refuses bad options and too little text, and stops when asked", async () => {
    const options = { model: TRAINED, text: BOOKS };
    await expectAqRejection(evaluate({ ...options, abits: 1 }), "AQ_ARG", "abits", "1");
    await expectAqRejection(evaluate({ ...options, windows: 0 }), "AQ_ARG", "windows", "0");
    await expectAqRejection(evaluate({ ...options, seqlen: 513 }), "AQ_ARG", "513", "512");
    await expectAqRejection(evaluate({ ...options, text: "/no/such.txt" }), "AQ_FILE", "such.txt");
    const short = path.join(tempFolder(), "short.txt");
    fs.writeFileSync(short, "Once upon a time");
    await expectAqRejection(evaluate({ ...options, text: short }), "AQ_ARG", "tokens", "512");
    const signal = AbortSignal.abort();
    await expectAqRejection(evaluate({ ...options, seqlen: 32 }, { signal }), "AQ_STOPPED");
  });
});

function average(numbers: readonly number[]): number {
  return numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
}

const QUERY = "model.layers.1.self_attn.q_proj.weight";

/** Opens a damaged copy of a tiny model and loads all of it. */
function load(changes: Changes, fixture = "gqa"): void {
  const dir = copyFixture(tinyFixture(fixture), tempFolder(), changes);
  const checkpoint = openCheckpoint(dir);
  try {
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    const parts = [loadOuter(checkpoint, model)];
    try {
      for (let i = 0; i < model.shape.blocks; i++) parts.push(loadBlock(checkpoint, model, i));
    } finally {
      for (const part of parts) for (const tensor of Object.values(part)) tensor.dispose();
    }
  } finally {
    checkpoint.close();
  }
}

/** A change of one tensor; undefined removes it. */
function change(name: string, edit: (tensor: StoredTensor) => StoredTensor | undefined): Changes {
  return {
    tensors: (tensors) => {
      const edited = edit(tensorNamed(tensors, name));
      if (edited) tensors.set(name, edited);
      else tensors.delete(name);
    },
  };
}

function patched(bits: number): (tensor: StoredTensor) => StoredTensor {
  return (tensor) => {
    const bytes = Uint8Array.from(tensor.bytes);
    new DataView(bytes.buffer).setUint16(bytes.length - 2, bits, true);
    return { ...tensor, bytes };
  };
}

describe("a checkpoint that cannot be used", () => {
  it("is accepted undamaged", () => load({}));

  it("of another family is refused with the families there are", () => {
    const config = (model_type: unknown): Changes => ({ config: (c) => ({ ...c, model_type }) });
    expectAqError(() => load(config("mamba")), "AQ_MODEL", '"mamba"', "config.json", "llama");
    expectAqError(() => load(config(undefined)), "AQ_MODEL", "model_type", "config.json");
    expectAqError(() => load(config(["llama"])), "AQ_MODEL", "model_type");
  });

  it("without a tensor is refused by its name, by inspect before any work", () => {
    const missing = change(QUERY, () => undefined);
    expectAqError(() => load(missing), "AQ_MODEL", QUERY, "aq-native-test-", "no tensor");
    const dir = copyFixture(tinyFixture("gqa"), tempFolder(), missing);
    expectAqError(() => inspect({ model: dir }), "AQ_MODEL", QUERY, dir);
  });

  it("with a tensor of another shape is refused with both shapes and the file", () => {
    const turned = change(QUERY, (tensor) => ({ ...tensor, shape: [32, 128] }));
    const parts = [QUERY, "model.safetensors", "[32, 128]", "[64, 64]"];
    expectAqError(() => load(turned), "AQ_MODEL", ...parts);
    const flat = change(QUERY, (tensor) => ({ ...tensor, shape: [4096] }));
    expectAqError(() => load(flat), "AQ_MODEL", QUERY, "[4096]");
  });

  it("with a tensor of another dtype is refused", () => {
    const bytes = change(QUERY, (tensor) => ({ ...tensor, dtype: "I16" }));
    expectAqError(() => load(bytes), "AQ_MODEL", QUERY, "model.safetensors", "I16", "F16");
  });

  it.each([
    ["NaN", 0x7e00],
    ["infinity", 0xfc00],
  ])("with %s in a weight is refused by tensor and file", (_, bits) => {
    const parts = [QUERY, "model.safetensors", "NaN or infinity"];
    expectAqError(() => load(change(QUERY, patched(bits))), "AQ_NUMERIC", ...parts);
    const embedding = change("model.embed_tokens.weight", patched(bits));
    expectAqError(() => load(embedding), "AQ_NUMERIC", "model.embed_tokens.weight");
    // Beside a head of its own the embedding is kept as it is stored.
    const apart = (): void => load(embedding, "untied");
    expectAqError(apart, "AQ_NUMERIC", "model.embed_tokens.weight", "NaN or infinity");
  });

  it("is refused in one sentence", () => {
    for (const changes of [
      change(QUERY, () => undefined),
      change(QUERY, (tensor) => ({ ...tensor, shape: [4096] })),
      change(QUERY, patched(0x7e00)),
    ]) {
      let message = "";
      try {
        load(changes);
      } catch (error) {
        message = (error as Error).message;
      }
      expect(message).toMatch(/^[^\n]{40,300}$/);
      expect(message.replace(/"[^"]*"|\S*\/\S*|\w+\.json/g, "")).not.toMatch(/[.!?] /);
    }
  });
});
