/**
 * What was learned for a finished block, before codes were made of it: training that goes on with all
 * blocks at once starts here. One safetensors file of f32 tensors for each block.
 */

import * as fs from "node:fs";
import { readSafetensorsHeader, SafetensorsWriter } from "../checkpoint/safetensors.ts";
import { AqError } from "../errors.ts";
import { Tensor } from "../tensor/tensor.ts";
import { openForReading, readFully } from "../util/fs.ts";

/** Tensors by key; biases and gains among the weights. */
export interface LearnedBlock {
  /** Folded weights. */
  readonly weights: Readonly<Record<string, Tensor>>;
  /** Clipping logits of weights and activations, by the names of their parameters. */
  readonly clips: Readonly<Record<string, Tensor>>;
  /** Rounding offsets, by linear; empty where rounding was not learned. */
  readonly offsets: Readonly<Record<string, Tensor>>;
}

const PARTS = ["weights", "clips", "offsets"] as const;

/** Throws: AQ_FILE. */
export function writeLearnedBlock(file: string, learned: LearnedBlock): void {
  const tensors = PARTS.flatMap((part) =>
    Object.entries(learned[part]).map(([key, tensor]) => ({ name: `${part}/${key}`, tensor })),
  );
  const specs = tensors.map(({ name, tensor }) => ({
    name,
    dtype: "F32" as const,
    shape: tensor.shape,
  }));
  const writer = new SafetensorsWriter(file, specs, { format: "aq-native" });
  try {
    for (const { name, tensor } of tensors) {
      const { buffer, byteOffset, byteLength } = tensor.floats();
      writer.append(name, new Uint8Array(buffer, byteOffset, byteLength));
    }
    writer.finish();
  } catch (error) {
    writer.abort();
    throw error;
  }
}

/** The caller owns the tensors. Throws: AQ_FILE, AQ_FORMAT. */
export function readLearnedBlock(file: string, device = "cpu"): LearnedBlock {
  const parts: Record<(typeof PARTS)[number], Record<string, Tensor>> = {
    weights: {},
    clips: {},
    offsets: {},
  };
  const fd = openForReading(file);
  try {
    for (const [name, { shape, offset, bytes }] of readSafetensorsHeader(fd, file).tensors) {
      const part = PARTS.find((p) => name.startsWith(`${p}/`));
      if (!part) {
        throw new AqError(
          "AQ_FORMAT",
          `${file} holds "${name}", which is no part of a learned block; start the run anew`,
        );
      }
      const data = new Uint8Array(bytes);
      readFully(fd, data, offset, file);
      parts[part][name.slice(part.length + 1)] = Tensor.from(data, shape, "f32", device);
    }
    return parts;
  } catch (error) {
    disposeLearned(parts);
    throw error;
  } finally {
    fs.closeSync(fd);
  }
}

export function disposeLearned(learned: LearnedBlock): void {
  for (const part of PARTS) for (const tensor of Object.values(learned[part])) tensor.dispose();
}
