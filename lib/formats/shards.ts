/**
 * Safetensors files of a whole checkpoint, planned first and then streamed: the header of each file is
 * known before its first byte, and one tensor's bytes are in memory at a time.
 */

import * as path from "node:path";
import { INDEX_NAME } from "../checkpoint/folder.ts";
import { SafetensorsWriter } from "../checkpoint/safetensors.ts";
import {
  SAFETENSORS_BYTES,
  type TensorSpec,
  tensorBytes,
} from "../checkpoint/safetensors-header.ts";
import type { JsonObject } from "../util/json.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";

/** A tensor that will be written. */
export interface PlannedTensor extends TensorSpec {
  /** Its bytes, in pieces; asked for once, when its turn has come. */
  readonly pieces: () => Iterable<Uint8Array>;
}

/** Files of about this size, as other tools make them. */
const SHARD_BYTES = 5e9;

/**
 * Writes the tensors into `dir`, and the index where there is more than one file. Throws: AQ_FILE, what
 * `onTensor` throws.
 */
export async function writeShards(
  dir: string,
  tensors: readonly PlannedTensor[],
  onTensor: (name: string) => Promise<void>,
  shardBytes: number = SHARD_BYTES,
): Promise<void> {
  const shards = cut(tensors, shardBytes);
  const map: JsonObject = {};
  let total = 0;
  for (const [i, shard] of shards.entries()) {
    const file = fileName(i, shards.length);
    for (const tensor of shard) {
      map[tensor.name] = file;
      total += sizeOf(tensor);
    }
    await writeShard(path.join(dir, file), aligned(shard), onTensor);
  }
  if (shards.length === 1) return;
  const index = { metadata: { total_size: total }, weight_map: map };
  writeFileAtomic(path.join(dir, INDEX_NAME), `${JSON.stringify(index, null, 2)}\n`);
}

async function writeShard(
  file: string,
  tensors: readonly PlannedTensor[],
  onTensor: (name: string) => Promise<void>,
): Promise<void> {
  const writer = new SafetensorsWriter(file, tensors);
  try {
    for (const { name, pieces } of tensors) {
      await onTensor(name);
      for (const piece of pieces()) writer.append(name, piece);
    }
    writer.finish();
  } catch (error) {
    writer.abort();
    throw error;
  }
}

function fileName(index: number, count: number): string {
  if (count === 1) return "model.safetensors";
  const five = (n: number): string => String(n).padStart(5, "0");
  return `model-${five(index + 1)}-of-${five(count)}.safetensors`;
}

function cut(tensors: readonly PlannedTensor[], limit: number): PlannedTensor[][] {
  const shards: PlannedTensor[][] = [[]];
  let filled = 0;
  for (const tensor of tensors) {
    const bytes = sizeOf(tensor);
    const last = shards.at(-1) as PlannedTensor[];
    if (last.length > 0 && filled + bytes > limit) {
      shards.push([tensor]);
      filled = bytes;
    } else {
      last.push(tensor);
      filled += bytes;
    }
  }
  return shards;
}

/**
 * Readers see tensors where they lie, so each must begin at a multiple of its element. Those whose
 * bytes are no multiple of eight come last, the widest elements first.
 */
function aligned(shard: readonly PlannedTensor[]): PlannedTensor[] {
  const isOdd = (tensor: PlannedTensor): boolean => sizeOf(tensor) % 8 !== 0;
  const width = ({ dtype }: PlannedTensor): number => SAFETENSORS_BYTES[dtype];
  const odd = shard.filter(isOdd).sort((a, b) => width(b) - width(a));
  return [...shard.filter((tensor) => !isOdd(tensor)), ...odd];
}

function sizeOf({ name, dtype, shape }: PlannedTensor): number {
  return tensorBytes(dtype, shape, name);
}
