/**
 * A Hugging Face checkpoint folder: its configuration, and a directory of all its tensors that are
 * read on demand. Opening reads headers only, so it costs the same for 10 MB and for 100 GB.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError, openForReading, readFully, readFullyAsync } from "../util/fs.ts";
import {
  isJsonObject,
  type JsonObject,
  kindOf,
  parseJsonObject,
  readJsonFile,
  readJsonText,
} from "../util/json.ts";
import { readSafetensorsHeader } from "./safetensors.ts";
import type { TensorEntry } from "./safetensors-header.ts";
import { hasFile, isPlainName, sourceFile } from "./source-files.ts";

const SINGLE = "model.safetensors";
/** Name of the file that maps tensors to shards. */
export const INDEX_NAME = "model.safetensors.index.json";

/** A tensor, the shard it lies in, and where. */
export interface CheckpointTensor extends TensorEntry {
  /** Name of the shard in the folder. */
  readonly file: string;
}

/** One weight file. */
export interface Shard {
  readonly file: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** In the order of their bytes. */
  readonly tensors: readonly CheckpointTensor[];
}

interface OpenShard extends Shard {
  readonly fd: number;
  readonly path: string;
}

/** An open checkpoint; whoever opens it closes it. */
export class Checkpoint {
  readonly dir: string;
  /** config.json. */
  readonly config: JsonObject;
  /** config.json as it was spelled. */
  readonly configText: string;
  /** In the order of their names. */
  readonly shards: readonly Shard[];
  /** All tensors, shard after shard. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** The index file's content, or null when the weights are one file without an index. */
  readonly index: JsonObject | null;
  readonly #open: ReadonlyMap<string, OpenShard>;
  #closed = false;

  /** Used by `openCheckpoint`. */
  constructor(
    dir: string,
    configText: string,
    index: JsonObject | null,
    shards: readonly OpenShard[],
  ) {
    this.dir = dir;
    this.configText = configText;
    this.config = parseJsonObject(configText, path.join(dir, "config.json"));
    this.index = index;
    this.shards = shards;
    this.#open = new Map(shards.map((s) => [s.file, s]));
    this.tensors = new Map(shards.flatMap((s) => s.tensors.map((t) => [t.name, t])));
  }

  /** What config.json says about an earlier quantization, or null for a full-precision checkpoint. */
  get quantization(): JsonObject | null {
    const value = this.config["quantization_config"];
    return isJsonObject(value) ? value : null;
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  /** Throws: AQ_MODEL when there is no such tensor. */
  info(name: string): CheckpointTensor {
    const tensor = this.tensors.get(name);
    if (!tensor) {
      throw new AqError(
        "AQ_MODEL",
        `${this.dir} has no tensor "${name}", which its config.json implies.`,
      );
    }
    return tensor;
  }

  /** All bytes of a tensor. Throws: AQ_MODEL, AQ_FILE. */
  readBytes(name: string): Buffer {
    const bytes = Buffer.allocUnsafeSlow(this.info(name).bytes);
    this.readInto(name, bytes);
    return bytes;
  }

  /**
   * Reads `length` bytes of a tensor from its byte `byteOffset` into the start of `target`.
   *
   * Throws: AQ_MODEL for an unknown tensor, AQ_ARG for a range outside it or a small target, AQ_FILE.
   */
  readInto(
    name: string,
    target: Uint8Array,
    byteOffset = 0,
    length: number = target.byteLength,
  ): void {
    if (length > target.byteLength) throw tooSmall(name, length, target);
    const { fd, path: file, position } = this.#locate(name, byteOffset, length);
    readFully(fd, target.subarray(0, length), position, file);
  }

  /**
   * Fills `target` with the bytes of a tensor from its byte `byteOffset`, on another thread. The
   * checkpoint must stay open until then.
   */
  async readIntoAsync(name: string, target: Uint8Array, byteOffset: number): Promise<void> {
    const { fd, path: file, position } = this.#locate(name, byteOffset, target.byteLength);
    await readFullyAsync(fd, target, position, file);
  }

  /** Where bytes of a tensor lie. */
  #locate(
    name: string,
    byteOffset: number,
    length: number,
  ): { readonly fd: number; readonly path: string; readonly position: number } {
    const tensor = this.info(name);
    const shard = this.#open.get(tensor.file);
    if (this.#closed || !shard) {
      throw new AqError("AQ_DISPOSED", `The checkpoint ${this.dir} is closed.`);
    }
    if (!(byteOffset >= 0 && length >= 0 && byteOffset + length <= tensor.bytes)) {
      throw new AqError(
        "AQ_ARG",
        `Cannot read bytes ${byteOffset} to ${byteOffset + length} of "${name}", which has ${tensor.bytes}.`,
      );
    }
    return { fd: shard.fd, path: shard.path, position: tensor.offset + byteOffset };
  }

  /** Closes the files; reading afterwards is an error, closing twice is not. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const shard of this.#open.values()) fs.closeSync(shard.fd);
  }
}

/**
 * Opens a checkpoint folder and checks that configuration, index and shards agree.
 *
 * Throws: AQ_FILE when something is missing or cut, AQ_FORMAT when it is malformed; each message says
 * what to do.
 */
export function openCheckpoint(dir: string): Checkpoint {
  checkFolder(dir);
  const configText = readJsonText(sourceFile(dir, "config.json"));
  const shards: OpenShard[] = [];
  try {
    let index: JsonObject | null = null;
    if (hasFile(dir, SINGLE)) {
      shards.push(openShard(dir, SINGLE));
    } else if (hasFile(dir, INDEX_NAME)) {
      index = readJsonFile(sourceFile(dir, INDEX_NAME));
      const map = readWeightMap(index, path.join(dir, INDEX_NAME));
      for (const file of [...new Set(map.values())].sort()) shards.push(openShard(dir, file));
      checkIndex(map, shards, path.join(dir, INDEX_NAME));
    } else {
      throw new AqError("AQ_FILE", explainNoWeights(dir));
    }
    return new Checkpoint(dir, configText, index, shards);
  } catch (error) {
    for (const shard of shards) fs.closeSync(shard.fd);
    throw error;
  }
}

function tooSmall(name: string, length: number, target: Uint8Array): AqError {
  return new AqError(
    "AQ_ARG",
    `Cannot read ${length} bytes of "${name}" into ${target.byteLength} bytes.`,
  );
}

function checkFolder(dir: string): void {
  const stat = fs.statSync(dir, { throwIfNoEntry: false });
  const expected = "expected the folder of a Hugging Face checkpoint (config.json, *.safetensors)";
  if (!stat) throw new AqError("AQ_FILE", `${dir} does not exist; ${expected}.`);
  if (!stat.isDirectory()) throw new AqError("AQ_FILE", `${dir} is a file; ${expected}.`);
  if (!hasFile(dir, "config.json")) {
    const hint = fs.readdirSync(dir).some((f) => f.endsWith(".gguf"))
      ? " GGUF files are finished models; start from the checkpoint they were made of."
      : "";
    throw new AqError("AQ_FILE", `${dir} has no config.json; ${expected}.${hint}`);
  }
}

function openShard(dir: string, file: string): OpenShard {
  const real = sourceFile(dir, file);
  const fd = openForReading(real);
  try {
    const { tensors, metadata } = readSafetensorsHeader(fd, path.join(dir, file));
    const located = [...tensors.values()].map((t) => ({ ...t, file }));
    return { file, metadata, tensors: located, fd, path: path.join(dir, file) };
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

function readWeightMap(index: JsonObject, where: string): Map<string, string> {
  const map = index["weight_map"];
  if (!isJsonObject(map)) {
    throw new AqError(
      "AQ_FORMAT",
      `${where}: expected an object "weight_map", got ${kindOf(map)}.`,
    );
  }
  const result = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== "string" || !isPlainName(file) || !file.endsWith(".safetensors")) {
      throw new AqError(
        "AQ_FORMAT",
        `${where}: "${name}" must name a .safetensors file of the same folder, got ${kindOf(file)}.`,
      );
    }
    result.set(name, file);
  }
  if (result.size === 0) throw new AqError("AQ_FORMAT", `${where}: "weight_map" is empty.`);
  return result;
}

/** Index and shards list the same tensors at the same places. */
function checkIndex(
  map: ReadonlyMap<string, string>,
  shards: readonly OpenShard[],
  where: string,
): void {
  const found = new Map(shards.map((s) => [s.file, new Set(s.tensors.map((t) => t.name))]));
  for (const [name, file] of map) {
    if (!found.get(file)?.has(name)) {
      throw new AqError(
        "AQ_FORMAT",
        `${where} places "${name}" in ${file}, which does not have it; download both again.`,
      );
    }
  }
  for (const shard of shards) {
    for (const { name } of shard.tensors) {
      const listed = map.get(name);
      if (listed !== shard.file) {
        const got = listed === undefined ? "does not list it" : `places it in ${listed}`;
        throw new AqError("AQ_FORMAT", `${shard.path} has "${name}", but ${where} ${got}.`);
      }
    }
  }
}

/** Why a folder with config.json cannot be used, and the way out. */
function explainNoWeights(dir: string): string {
  let names: string[];
  try {
    names = fs.readdirSync(dir);
  } catch (error) {
    throw fileError("list", dir, error);
  }
  const has = (pattern: RegExp): boolean => names.some((n) => pattern.test(n));
  const start = `${dir} has no ${SINGLE} and no ${INDEX_NAME}`;
  if (has(/^adapter_model\./)) {
    return `${start}, only an adapter; merge it into its base model first and save that.`;
  }
  if (has(/\.(bin|pth|pt)$/)) {
    return `${start}, only PyTorch files (*.bin, *.pth); save the model again as safetensors with transformers' save_pretrained.`;
  }
  if (has(/\.gguf$/)) {
    return `${start}, only GGUF; start from the checkpoint that it was made of.`;
  }
  if (has(/\.safetensors$/)) {
    return `${start}; its safetensors files have other names, and without the index nobody knows which belong together.`;
  }
  return `${start}; download the weights into it.`;
}
