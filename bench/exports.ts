/**
 * Runs and their exports, with what we compute from them, for bench/peers/check_exports.py.
 *
 *   npm run bench:exports -- OUT [CASE...]
 *
 * OUT gets a folder for each case: `run`, the exports in folders of their names, and `ours` with
 *
 *   expect.json         model, options, formats, text and its tokens, and the formats' activations
 *   model.safetensors   `ids`, the logits of `ids` by folder, and for each linear N of the run
 *                       `N.codes`, `N.scale`, `N.zero` and the weight N, as plain arrays
 *
 * Of 4-bit floats there is what export-floats.ts says instead; a random model has no text and tokens.
 *
 * Models that are no fixtures are looked for in $AQ_SHARED/models, and left out where they are missing.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { exportRun } from "../lib/export-run.ts";
import { type PlannedTensor, writeShards } from "../lib/formats/shards.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { type FormatName, type QuantizeOptions, quantize } from "../lib/index.ts";
import { dequantize } from "../lib/packed/linear.ts";
import { SavedRun } from "../lib/verify/state.ts";
import { withTokenizer } from "../test/helpers/tiny-tokenizer.ts";
import { floatExpectations, tensor } from "./export-floats.ts";

type Options = Omit<QuantizeOptions, "model" | "out">;

interface Case {
  /** tiny/NAME: a random model of test/fixtures/tiny, which gets a tokenizer of single characters. */
  readonly model: "llama-gqa-4m" | "opt-5m" | "llama-23m" | `tiny/${string}`;
  readonly options: Options;
  readonly formats: readonly FormatName[];
}

const FIXTURES = path.join("test", "fixtures");
const TEXT = path.join(FIXTURES, "books-test-head.txt");
/** Tokens whose logits are compared, where a sequence may be that long. */
const TOKENS = 64;
/** Characters that are cut into tokens. */
const CHARACTERS = 4000;

const llama = (options: Options, ...formats: FormatName[]): Case => ({
  model: "llama-gqa-4m",
  options: { recipe: "rtn", ...options },
  formats,
});
/** 4-bit floats, which real readers dequantize to bfloat16. */
const floats = (model: Case["model"], scheme: string, more: Options = {}): Case => ({
  ...llama({ scheme, ...more }, "compressed-tensors"),
  model,
  formats: scheme.startsWith("NVFP4") ? ["compressed-tensors", "modelopt"] : ["compressed-tensors"],
});
const opt = (options: Options, ...formats: FormatName[]): Case => ({
  ...llama(options, ...formats),
  model: "opt-5m",
});

/** Calibrated, so that what folds has to meet the biases, norms and windows that the reader knows of. */
const family = (name: string): Case => ({
  model: `tiny/${name}`,
  options: { wbits: 4, groupSize: 8, nsamples: 4, seqlen: 16, epochs: 2 },
  formats: ["hf", "gptq_v2", "awq", "compressed-tensors"],
});

const CASES: Readonly<Record<string, Case>> = {
  w4: llama({ wbits: 4, groupSize: 32 }, "hf", "gptq_v2", "awq", "compressed-tensors"),
  "w4-symmetric": llama(
    { wbits: 4, groupSize: 32, symmetric: true },
    ...(["hf", "gptq", "gptq_v2", "awq", "compressed-tensors"] as const),
  ),
  "w4-channel": llama({ wbits: 4 }, "hf", "gptq_v2", "awq", "compressed-tensors"),
  w3: llama({ wbits: 3 }, "hf", "gptq_v2", "compressed-tensors"),
  "w3-symmetric": llama(
    { wbits: 3, groupSize: 32, symmetric: true },
    ...(["gptq", "compressed-tensors"] as const),
  ),
  w2: llama({ wbits: 2, groupSize: 32 }, "hf", "gptq_v2", "compressed-tensors"),
  w8: llama({ wbits: 8 }, "hf", "gptq_v2", "compressed-tensors"),
  w8a8: llama({ wbits: 8, abits: 8, symmetric: true }, "compressed-tensors"),
  w4a4: llama({ wbits: 4, abits: 4, symmetric: true }, "hf", "compressed-tensors"),
  calibrated: llama(
    { wbits: 4, groupSize: 32, recipe: "default", nsamples: 4, epochs: 2 },
    ...(["hf", "gptq_v2", "awq", "compressed-tensors"] as const),
  ),
  "full-norm": llama(
    { wbits: 4, groupSize: 32, recipe: "affine", normFull: true, nsamples: 4, epochs: 2 },
    "compressed-tensors",
  ),
  nvfp4a16: floats("llama-gqa-4m", "NVFP4A16"),
  nvfp4: floats("llama-gqa-4m", "NVFP4"),
  "nvfp4-kept": floats("llama-gqa-4m", "NVFP4", { keep: ["layers.1.mlp.*", "o_proj"] }),
  mxfp4a16: floats("llama-gqa-4m", "MXFP4A16"),
  mxfp4: floats("llama-gqa-4m", "MXFP4"),
  "nvfp4a16-23m": floats("llama-23m", "NVFP4A16"),
  "nvfp4-23m": floats("llama-23m", "NVFP4"),
  opt: opt({ wbits: 4, groupSize: 32 }, "hf", "gptq_v2", "awq", "compressed-tensors"),
  "opt-w3": opt({ wbits: 3 }, "hf", "gptq_v2", "compressed-tensors"),
  mistral: family("mistral"),
  "mistral-window": family("mistral-window"),
  qwen2: family("qwen2"),
  "qwen2-window": family("qwen2-window"),
  qwen3: family("qwen3"),
  "qwen3-biases": family("qwen3-biases"),
};

/** Logits by a folder; with its activations as they are, or left alone. */
function logitsOf(dir: string, ids: Int32Array, quantized: boolean): Float32Array {
  const source = openLanguageModel(dir, "cpu");
  try {
    return forwardLogits(quantized ? source : { ...source, activations: null }, ids);
  } finally {
    source.close();
  }
}

/** The run's linears as plain arrays, read from its state. */
function* plainLinears(dir: string): Generator<PlannedTensor> {
  const run = new SavedRun(dir);
  try {
    for (const spec of run.blockSpecs()) {
      if (!run.isLinear(spec.name)) continue;
      const linear = run.linear(spec);
      if (linear.kind !== "integers") continue;
      const { rows, columns, groups, group, codes, scales, zeros } = linear;
      const grid = [rows, groups];
      const weight = dequantize({
        kind: "integers",
        ...{ bits: run.config.scheme.wbits, rows, columns, group, scaleType: "F16" },
        ...{ codes: Uint8Array.from(codes), groupOf: null },
        ...{ scale: Float32Array.from(scales), zero: Float32Array.from(zeros) },
      });
      yield tensor(spec.name, "F32", spec.shape, weight.floats());
      weight.dispose();
      yield tensor(`${spec.name}.codes`, "U8", [rows, columns], codes);
      yield tensor(`${spec.name}.scale`, "F32", grid, scales);
      yield tensor(`${spec.name}.zero`, "F32", grid, zeros);
    }
  } finally {
    run.close();
  }
}

/** Folder of a model, or nothing. */
function folderOf(model: Case["model"]): string | undefined {
  const { AQ_SHARED: shared } = process.env;
  const places = [FIXTURES, ...(shared ? [path.join(shared, "models")] : [])];
  return places.map((place) => path.join(place, model)).find((dir) => fs.existsSync(dir));
}

async function prepare(
  dir: string,
  given: string,
  { model, options, formats }: Case,
): Promise<void> {
  const run = path.join(dir, "run");
  const ours = path.join(dir, "ours");
  fs.rmSync(dir, { recursive: true, force: true });
  fs.mkdirSync(ours, { recursive: true });
  const isTiny = model.startsWith("tiny/");
  const { model: source, calib } = isTiny
    ? withTokenizer(dir, model.slice("tiny/".length))
    : { model: given, calib: TEXT };
  const settings = { calib, nsamples: 1, seqlen: 128, ...options };
  await quantize({ model: source, out: run, ...settings });
  for (const format of formats) await exportRun({ run, format, out: path.join(dir, format) });

  const output = openLanguageModel(run, "cpu");
  const text = fs.readFileSync(calib, "utf8").slice(0, CHARACTERS);
  const tokens = [...output.tokenizer.encode(text)];
  const { vocabulary, maxTokens } = output.model.shape;
  output.close();
  const floats = await floatExpectations(dir, tokens);
  if (floats) {
    await writeShards(ours, floats.tensors, async () => {});
    const { weights } = floats;
    const expected = { model, options: settings, formats, text, tokens, weights };
    fs.writeFileSync(path.join(ours, "expect.json"), `${JSON.stringify(expected)}\n`);
    return;
  }
  const ids = Int32Array.from(tokens.slice(0, Math.min(TOKENS, maxTokens)));
  const logits = formats.flatMap((format) =>
    [false, true].map((quantized) =>
      tensor(
        `logits.${format}.${quantized ? "tokens" : "weights"}`,
        "F32",
        [ids.length, vocabulary],
        logitsOf(path.join(dir, format), ids, quantized),
      ),
    ),
  );
  const all = [tensor("ids", "I32", [ids.length], ids), ...logits, ...plainLinears(run)];
  await writeShards(ours, all, async () => {});
  const words = isTiny ? {} : { text, tokens };
  const expected = { model, options: settings, formats, ...words };
  fs.writeFileSync(path.join(ours, "expect.json"), `${JSON.stringify(expected)}\n`);
}

const { positionals } = parseArgs({ allowPositionals: true });
const [out, ...wanted] = positionals;
const unknown = wanted.find((name) => !(name in CASES));
if (!out || unknown !== undefined) {
  console.error(
    unknown === undefined
      ? "name the folder to write"
      : `no case ${unknown}; there are ${Object.keys(CASES).join(", ")}`,
  );
  process.exit(2);
}
for (const [name, given] of Object.entries(CASES)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const source = folderOf(given.model);
  if (source === undefined) {
    console.log(`${name}: left out, there is no ${given.model}`);
    continue;
  }
  await prepare(path.join(out, name), source, given);
  console.log(`${name}: ${given.formats.join(", ")}`);
}
