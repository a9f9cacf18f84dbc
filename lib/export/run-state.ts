/**
 * The run folder, `<out>/aq/`: job.json, and for each finished block the codes, scales and zeros of
 * its linears with the folded gains and biases. Exports are written from it without rounding again.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { readSafetensorsHeader, SafetensorsWriter } from "../checkpoint/safetensors.ts";
import type { TensorSpec as FileTensor, TensorEntry } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import type { Model } from "../models/family.ts";
import { groupsPerRow } from "../quant/weights.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { fileError, openForReading, readFully, writeFileAtomic } from "../util/fs.ts";
import type { JsonObject } from "../util/json.ts";
import type { FinishedWeights, QuantizedByKey } from "./weights.ts";

/** Folder of the run state under the output. */
export const RUN_FOLDER = "aq";

/** Files of one run. */
export class RunState {
  readonly dir: string;

  constructor(out: string) {
    this.dir = path.join(out, RUN_FOLDER);
  }

  /** Starts with an empty folder. Throws: AQ_FILE. */
  reset(): void {
    try {
      fs.rmSync(this.dir, { recursive: true, force: true });
      fs.mkdirSync(path.join(this.dir, "blocks"), { recursive: true });
    } catch (error) {
      throw fileError("create", this.dir, error);
    }
  }

  writeJob(job: JsonObject): void {
    writeFileAtomic(path.join(this.dir, "job.json"), `${JSON.stringify(job, null, 2)}\n`);
  }

  blockFile(block: number): string {
    return path.join(this.dir, "blocks", `block-${String(block).padStart(4, "0")}.safetensors`);
  }

  /** Stores a finished block under the names of the checkpoint. Throws: AQ_FILE. */
  writeBlock(
    block: number,
    model: Model,
    finished: FinishedWeights,
    metadata: Readonly<Record<string, string>>,
  ): void {
    const names = new Map(model.blockTensors(block).map(({ key, name }) => [key, name]));
    const parts: { spec: FileTensor; bytes: () => Uint8Array }[] = [];
    for (const { key } of model.linears) {
      const name = names.get(key) as string;
      const { codes, scale, zero } = finished.quantized[key] as QuantizedByKey[string];
      parts.push({
        spec: { name: `${name}.codes`, dtype: "U8", shape: codes.shape },
        bytes: () => rawBytes(codes),
      });
      parts.push({
        spec: { name: `${name}.scale`, dtype: "F16", shape: scale.shape },
        bytes: () => castBytes(scale, "f16"),
      });
      parts.push({
        spec: { name: `${name}.zero`, dtype: "U8", shape: zero.shape },
        bytes: () => castBytes(zero, "u8"),
      });
    }
    for (const [key, tensor] of Object.entries(finished.others)) {
      parts.push({
        spec: { name: names.get(key) as string, dtype: "F32", shape: [tensor.size] },
        bytes: () => rawBytes(tensor),
      });
    }
    const specs = parts.map(({ spec }) => spec);
    const writer = new SafetensorsWriter(this.blockFile(block), specs, {
      format: "aq-native",
      ...metadata,
    });
    try {
      for (const { spec, bytes } of parts) writer.append(spec.name, bytes());
      writer.finish();
    } catch (error) {
      writer.abort();
      throw error;
    }
  }

  /** Opens a stored block. Throws: AQ_FILE, AQ_FORMAT. */
  openBlock(block: number): StoredBlock {
    return new StoredBlock(this.blockFile(block));
  }
}

/** A finished block on disk; close it after use. */
export class StoredBlock {
  readonly #fd: number;
  readonly #file: string;
  readonly #tensors: ReadonlyMap<string, TensorEntry>;

  constructor(file: string) {
    this.#file = file;
    this.#fd = openForReading(file);
    try {
      this.#tensors = readSafetensorsHeader(this.#fd, file).tensors;
    } catch (error) {
      fs.closeSync(this.#fd);
      throw error;
    }
  }

  #read(name: string): { entry: TensorEntry; bytes: Uint8Array } {
    const entry = this.#tensors.get(name);
    if (!entry)
      throw new AqError(
        "AQ_FORMAT",
        `${this.#file} has no "${name}"; the run folder is damaged, start the run anew`,
      );
    const bytes = new Uint8Array(entry.bytes);
    readFully(this.#fd, bytes, entry.offset, this.#file);
    return { entry, bytes };
  }

  /** The weight of a tensor of the checkpoint, f32: dequantized, or the folded gain or bias. */
  weight(name: string, groupSize: number): Tensor {
    const f32 = dtypeCode("f32");
    return scope(() => {
      if (!this.#tensors.has(`${name}.codes`)) {
        const { entry, bytes } = this.#read(name);
        return Tensor.from(bytes, entry.shape, "f32");
      }
      const codes = this.#read(`${name}.codes`);
      const scale = this.#read(`${name}.scale`);
      const zero = this.#read(`${name}.zero`);
      const rows = codes.entry.shape[0] as number;
      const groups = groupsPerRow(codes.entry.shape[1] as number, groupSize);
      const grid = [rows, groups];
      return invokeOne(
        "dequantize",
        [
          Tensor.from(codes.bytes, codes.entry.shape, "u8"),
          invokeOne("cast", [Tensor.from(scale.bytes, grid, "f16")], { dtype: f32 }),
          invokeOne("cast", [Tensor.from(zero.bytes, grid, "u8")], { dtype: f32 }),
        ],
        { group: groupSize },
      );
    });
  }

  close(): void {
    fs.closeSync(this.#fd);
  }
}

/** Bytes of a tensor as they are. */
function rawBytes(tensor: Tensor): Uint8Array {
  const data = tensor.read();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function castBytes(tensor: Tensor, dtype: "f16" | "u8"): Uint8Array {
  return scope(() => ({
    bytes: rawBytes(invokeOne("cast", [tensor], { dtype: dtypeCode(dtype) })),
  })).bytes;
}
