/**
 * GGUF, for llama.cpp and what is built on it: one file with the weights, the tokenizer and what the
 * model is. LLaMA and kin alone: llama.cpp has no OPT. What its graph of an architecture does not apply is
 * refused, since it would be left out without a word.
 */

import * as path from "node:path";
import { AqError } from "../errors.ts";
import type { FormatName } from "../export-types.ts";
import type { Model, TensorSpec } from "../models/family.ts";
import { hasGlobalScales, quantizesTokens } from "../quant/scheme.ts";
import { ChangeMeter } from "./change.ts";
import type { Format, FormatOutput, Written } from "./format.ts";
import { type GgmlType, type GgufTensor, writeGguf } from "./gguf-file.ts";
import { ggufArchitecture, ggufKeys, ropeFactors } from "./gguf-keys.ts";
import {
  blockRows,
  dequantizedRows,
  type FloatParts,
  floatRows,
  type LinearParts,
  orderedRows,
  type RowOrder,
  ropeRows,
  SAME_ROWS,
} from "./gguf-rows.ts";
import { ggufTokenizer } from "./gguf-tokenizer.ts";
import { blockType } from "./gguf-type.ts";
import { firstReason, refusesAdditions, refusesFloats } from "./limits.ts";
import { bytesOf } from "./pack.ts";
import { shorts, shortsOf, singles } from "./plain.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import type { Setting } from "./setting.ts";

/** The file in the folder. */
const GGUF_NAME = "model.gguf";

/** Names in a GGUF file by the keys that blocks give their tensors. */
const NAMES: Readonly<Record<string, string>> = {
  norm1: "attn_norm",
  q: "attn_q",
  k: "attn_k",
  v: "attn_v",
  o: "attn_output",
  norm2: "ffn_norm",
  gate: "ffn_gate",
  up: "ffn_up",
  down: "ffn_down",
  q_norm: "attn_q_norm",
  k_norm: "attn_k_norm",
};
const OUTER_NAMES: Readonly<Record<string, string>> = {
  embedding: "token_embd.weight",
  norm: "output_norm.weight",
  head: "output.weight",
};

interface Meters {
  readonly weights: ChangeMeter;
  readonly others: ChangeMeter;
}

/** Name of a block's tensor, bias or weight. */
function nameOf(block: number, key: string): string {
  const [linear = "", part = "weight"] = key.split(".");
  const name = NAMES[linear];
  if (!name) throw new TypeError(`a GGUF file has no name for '${key}'`);
  return `blk.${block}.${name}.${part}`;
}

/** q and k, weights and biases, lie in the order of llama.cpp's rotary embedding of the architecture. */
function orderOf({ model }: FinishedRun, key: string): RowOrder {
  const isPaired = ggufArchitecture(model) === "llama" && /^[qk](\.|$)/.test(key);
  return isPaired ? ropeRows(model.shape.headDim) : SAME_ROWS;
}

function planLinear(
  run: FinishedRun,
  linear: StoredLinear,
  wanted: GgmlType,
  meters: Meters,
): GgufTensor {
  const { block, key, rows, columns, name } = linear;
  const type = columns % 32 === 0 ? wanted : "F16";
  const order = orderOf(run, key);
  const parts = (): LinearParts => ({
    linear,
    codes: run.codes(linear),
    scales: run.scales(linear),
    zeros: run.zeros(linear),
  });
  function* pieces(): Generator<Uint8Array> {
    if (type === "Q4_0" || type === "Q4_1" || type === "Q8_0") {
      yield* blockRows(parts(), type, order, meters.weights);
      return;
    }
    const floats = floatsOf(run, linear);
    for (const some of floats ? floatRows(floats, order) : dequantizedRows(parts(), order))
      yield shortsOf(some, name, meters.weights);
  }
  return { name: nameOf(block, key), type, shape: [rows, columns], pieces };
}

/** Of a run of 4-bit floats. */
function floatsOf(run: FinishedRun, linear: StoredLinear): FloatParts | undefined {
  const { scheme } = run.setting;
  if (!scheme.numbers) return undefined;
  return {
    linear,
    numbers: scheme.numbers,
    codes: run.codes(linear),
    scaleBytes: run.scaleBytes(linear),
    global: hasGlobalScales(scheme) ? run.globalScale(linear) : 1,
  };
}

/** A gain, a bias, or a linear that is not quantized. */
function planPlain(
  run: FinishedRun,
  block: number,
  { key, name, shape }: TensorSpec,
  meters: Meters,
): GgufTensor {
  const isMatrix = shape.length > 1;
  const columns = isMatrix ? (shape[1] as number) : 1;
  const pieces = (): Uint8Array[] => {
    const numbers = orderedRows(run.plain(block, name, shape), columns, orderOf(run, key));
    return [isMatrix ? shortsOf(numbers, name, meters.others) : bytesOf(numbers)];
  };
  return { name: nameOf(block, key), type: isMatrix ? "F16" : "F32", shape, pieces };
}

function planOuter(run: FinishedRun, { key, name, shape }: TensorSpec, meters: Meters): GgufTensor {
  const target = OUTER_NAMES[key];
  if (!target) throw new TypeError(`a GGUF file has no name for '${key}'`);
  const { checkpoint } = run;
  if (shape.length > 1) {
    return {
      name: target,
      type: "F16",
      shape,
      pieces: () => shorts(checkpoint, name, meters.others),
    };
  }
  function* pieces(): Generator<Uint8Array> {
    for (const piece of singles(checkpoint, name)) yield bytesOf(piece);
  }
  return { name: target, type: "F32", shape, pieces };
}

function planAll(run: FinishedRun, type: GgmlType, meters: Meters): GgufTensor[] {
  const { model } = run;
  const outer = new Map(model.outerTensors().map((spec) => [spec.key, spec]));
  const tensors: GgufTensor[] = [];
  const put = (key: string): void => {
    const spec = outer.get(key);
    if (spec) tensors.push(planOuter(run, spec, meters));
  };
  put("embedding");
  const factors = ropeFactors(model);
  if (factors) {
    const shape = [factors.length];
    tensors.push({
      name: "rope_freqs.weight",
      type: "F32",
      shape,
      pieces: () => [bytesOf(factors)],
    });
  }
  for (let block = 0; block < model.shape.blocks; block++) {
    const linears = new Map(run.linears(block).map((linear) => [linear.key, linear]));
    for (const spec of model.blockTensors(block)) {
      const linear = linears.get(spec.key);
      tensors.push(
        linear ? planLinear(run, linear, type, meters) : planPlain(run, block, spec, meters),
      );
    }
  }
  put("norm");
  put("head");
  return tensors;
}

async function write(run: FinishedRun, type: GgmlType, output: FormatOutput): Promise<Written> {
  const { setting } = run;
  const meters: Meters = { weights: new ChangeMeter(), others: new ChangeMeter() };
  const tokenizer = ggufTokenizer(run.checkpoint.dir, run.model.shape.vocabulary, setting.config);
  const keys = new Map([...ggufKeys(run, type), ...tokenizer.keys]);
  const tensors = planAll(run, type, meters);
  await writeGguf(path.join(output.dir, GGUF_NAME), keys, tensors, output.onTensor);
  return {
    change: meters.weights.change,
    otherChange: meters.others.changeOrNull,
    notes: [...notes(setting, type), ...tokenizer.notes],
  };
}

function refuses(name: FormatName, setting: Setting): string | undefined {
  const { model, scheme } = setting;
  return firstReason(
    refusesModel(name, model),
    refusesAdditions(name, setting),
    name === "gguf" ? refusesFloats(name, setting) : undefined,
    // 4-bit floats are there dequantized, and nobody takes that for what the run computes.
    quantizesTokens(scheme) && scheme.abits < 8 && !scheme.numbers
      ? `${name} stores weights alone, and this run's ${scheme.abits}-bit activations would be left out; quantize with --abits 16, or write aq`
      : undefined,
    name === "gguf" ? refusesGrid(setting) : undefined,
    refusesTokenizer(name, setting),
  );
}

/** llama.cpp applies more to the architecture llama than to those of Qwen. */
function refusesModel(name: string, model: Model): string | undefined {
  const others = "write awq, gptq_v2 or compressed-tensors";
  const own = ggufArchitecture(model);
  if (!own) {
    return `${name} is for LLaMA and kin, since llama.cpp has no ${model.family.toUpperCase()}; ${others}`;
  }
  if (own === "llama") return undefined;
  const { heads, headDim, hidden } = model.shape;
  if (model.rotary?.ropeScaling.type === "llama3") {
    return `${name} has no place for llama3's rotary scaling in a model of ${own}, to which llama.cpp does not apply it; ${others}`;
  }
  if (own === "qwen2" && heads * headDim !== hidden) {
    return `${name} cannot hold this model, since llama.cpp wants heads of hidden_size / num_attention_heads features in qwen2, and it has ${headDim}; ${others}`;
  }
  const stray = model.blockTensors(0).find(({ key }) => /^(o|gate|up|down)\.bias$/.test(key));
  if (!stray) return undefined;
  return `${name} has no place for "${stray.name}", since llama.cpp leaves such biases out in ${own}; ${others}`;
}

function refusesGrid({ scheme }: Setting): string | undefined {
  if (scheme.groupSize % 32 !== 0) {
    return `gguf has blocks of 32 weights, which groups of ${scheme.groupSize} do not fill; quantize with a --group-size that is a multiple of 32 or leave it out, or write gguf-f16`;
  }
  if (blockType(scheme) === null) {
    return `gguf has no type for asymmetric grids of ${scheme.wbits} bits; quantize with --symmetric, or write gguf-f16`;
  }
  return undefined;
}

function refusesTokenizer(
  name: FormatName,
  { folder, model, config }: Setting,
): string | undefined {
  try {
    ggufTokenizer(folder, model.shape.vocabulary, config);
    return undefined;
  } catch (error) {
    if (!(error instanceof AqError)) throw error;
    return `${name} needs the tokenizer in the file: ${error.message.replace(/[.]$/, "")}`;
  }
}

function notes(setting: Setting, type: GgmlType): string[] {
  const { model, scheme } = setting;
  const list: string[] = [];
  const ragged = model.linears.filter(({ in: columns }) => columns % 32 !== 0);
  if (type !== "F16" && ragged.length > 0) {
    const which = ragged.map(({ key, in: columns }) => `${key} (${columns})`).join(", ");
    list.push(`rows that are no multiple of 32 are stored as F16: ${which}`);
  }
  const { slidingWindow } = model.traits;
  if (slidingWindow !== undefined) {
    list.push(
      `llama.cpp looks back without a window, so the file gives the window of ${slidingWindow} tokens as its context_length: up to there both are the same`,
    );
  }
  if (quantizesTokens(scheme)) {
    list.push(
      `llama.cpp leaves the run's ${scheme.abits}-bit activations out, and quantizes in its own way`,
    );
  }
  const bits = { Q4_0: 4, Q4_1: 4, Q8_0: 8 }[type as string];
  if (bits !== undefined && bits > scheme.wbits) {
    list.push(`the ${scheme.wbits}-bit codes lie in ${type}, which has room for ${bits} bits`);
  }
  return list;
}

export const gguf: Format = {
  name: "gguf",
  about: "GGUF with Q4_0, Q4_1 or Q8_0 blocks, not for OPT: llama.cpp, node-llama-cpp",
  refuses: (setting) => refuses("gguf", setting),
  notes: (setting) => notes(setting, blockType(setting.scheme) ?? "F16"),
  write: (run, output) => write(run, blockType(run.setting.scheme) ?? "F16", output),
};

export const ggufF16: Format = {
  name: "gguf-f16",
  about: "GGUF with the dequantized weights in F16, not for OPT: llama.cpp, node-llama-cpp",
  refuses: (setting) => refuses("gguf-f16", setting),
  notes: (setting) => notes(setting, "F16"),
  write: (run, output) => write(run, "F16", output),
};
