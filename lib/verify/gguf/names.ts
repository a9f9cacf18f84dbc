/** What llama.cpp calls a model and its tensors, and the order in which it has the rows of some. */

import { AqError } from "../../errors.ts";
import type { Model, TensorSpec } from "../../models/family.ts";

/** Families whose architecture has the name of another family. */
const SAME_AS: Readonly<Record<string, string>> = { mistral: "llama" };
/** Architectures that turn neighbouring rows of a head, where checkpoints pair its two halves. */
const NEIGHBOURS: readonly string[] = ["llama"];

/** `general.architecture` of the model. */
export function architectureOf({ family }: Model): string {
  return SAME_AS[family] ?? family;
}

const BLOCK_NAMES: Readonly<Record<string, string>> = {
  norm1: "attn_norm",
  norm2: "ffn_norm",
  q: "attn_q",
  k: "attn_k",
  q_norm: "attn_q_norm",
  k_norm: "attn_k_norm",
  v: "attn_v",
  o: "attn_output",
  gate: "ffn_gate",
  up: "ffn_up",
  down: "ffn_down",
};

const OUTER_NAMES: Readonly<Record<string, string>> = {
  embedding: "token_embd.weight",
  norm: "output_norm.weight",
  head: "output.weight",
};

/** Name of a tensor outside the blocks. Throws: AQ_MODEL. */
export function outerName({ key, name }: TensorSpec): string {
  const known = OUTER_NAMES[key];
  if (known === undefined) throw unnamed(name);
  return known;
}

/** Name of a tensor of block `block`. Throws: AQ_MODEL. */
export function blockName(block: number, { key, name }: TensorSpec): string {
  const [base = "", kind = "weight"] = key.split(".");
  const known = BLOCK_NAMES[base];
  if (known === undefined || (kind !== "weight" && kind !== "bias")) throw unnamed(name);
  return `blk.${block}.${known}.${kind}`;
}

function unnamed(name: string): AqError {
  return new AqError("AQ_MODEL", `"${name}" has no place in a GGUF file`);
}

/**
 * Row of the checkpoint that row r of the file is, for tensors whose rows llama.cpp reorders: within a
 * head of D rows, the halves that rotary embedding pairs are interleaved. Others keep their order.
 */
export function rowOrder(model: Model, key: string): (row: number) => number {
  const [base = ""] = key.split(".");
  const isTurned = NEIGHBOURS.includes(architectureOf(model)) && (base === "q" || base === "k");
  if (!isTurned) return (row) => row;
  const { headDim } = model.shape;
  return (row) => {
    const within = row % headDim;
    return row - within + (within % 2) * (headDim / 2) + Math.floor(within / 2);
  };
}
