/** A finished block in the run folder, read back. */

import * as fs from "node:fs";
import { readSafetensorsHeader } from "../checkpoint/safetensors.ts";
import { engineDType, type TensorEntry } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import type { Model } from "../models/family.ts";
import type { QuantizedWeight } from "../quant/quantizer.ts";
import { scaleValues } from "../quant/quantizers.ts";
import { groupsPerRow } from "../quant/scheme.ts";
import { dequantizeWeight } from "../quant/weights.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { openForReading, readFully } from "../util/fs.ts";
import type { FinishedWeights } from "./weights.ts";

/** An open file of the run folder; close it after use. */
export class StoredBlock {
  readonly #fd: number;
  readonly #device: string;
  readonly #file: string;
  readonly #tensors: ReadonlyMap<string, TensorEntry>;

  /** Tensors are made on `device`. Throws: AQ_FILE, AQ_FORMAT. */
  constructor(file: string, device: string) {
    this.#file = file;
    this.#device = device;
    this.#fd = openForReading(file);
    try {
      this.#tensors = readSafetensorsHeader(this.#fd, file).tensors;
    } catch (error) {
      fs.closeSync(this.#fd);
      throw error;
    }
  }

  /** The weight of a tensor of the checkpoint, f32: dequantized, or the folded gain or bias. */
  weight(name: string, groupSize: number): Tensor {
    return scope(() =>
      this.#tensors.has(`${name}.codes`)
        ? dequantizeWeight(this.#quantized(name, groupSize), groupSize)
        : this.#plain(name),
    );
  }

  /** The block as it was when it was finished; the caller owns the tensors. */
  load(block: number, model: Model, groupSize: number): FinishedWeights {
    const quantized: Record<string, QuantizedWeight> = {};
    const others: Record<string, Tensor> = {};
    const linears = new Set(model.linears.map(({ key }) => key));
    for (const { key, name } of model.blockTensors(block)) {
      const isQuantized = linears.has(key) && this.#tensors.has(`${name}.codes`);
      if (isQuantized) quantized[key] = this.#quantized(name, groupSize);
      else others[key] = this.#plain(name);
    }
    return { quantized, others };
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  /** A tensor of the file as it is stored. Throws: AQ_FORMAT when there is none of this name, AQ_FILE. */
  read(name: string): { shape: readonly number[]; dtype: DType; bytes: Uint8Array } {
    const entry = this.#tensors.get(name);
    const dtype = entry && engineDType(entry.dtype);
    if (!entry || !dtype) {
      throw new AqError(
        "AQ_FORMAT",
        `${this.#file} has no "${name}"; the run folder is damaged, start the run anew`,
      );
    }
    const bytes = new Uint8Array(entry.bytes);
    readFully(this.#fd, bytes, entry.offset, this.#file);
    return { shape: entry.shape, dtype, bytes };
  }

  #plain(name: string): Tensor {
    const { shape, bytes } = this.read(name);
    return Tensor.from(bytes, shape, "f32", this.#device);
  }

  #quantized(name: string, groupSize: number): QuantizedWeight {
    const { shape, bytes } = this.read(`${name}.codes`);
    if (!this.#tensors.has(`${name}.zero`)) return this.#floats(name, shape, bytes, groupSize);
    const grid = [shape[0] as number, groupsPerRow(shape[1] as number, groupSize)];
    const single = (part: "scale" | "zero"): Tensor =>
      scope(() => {
        const { bytes, dtype } = this.read(`${name}.${part}`);
        const stored = Tensor.from(bytes, grid, dtype, this.#device);
        return invokeOne("cast", [stored], { dtype: dtypeCode("f32") });
      });
    return {
      codes: Tensor.from(bytes, shape, "u8", this.#device),
      scale: single("scale"),
      zero: single("zero"),
    };
  }

  #floats(
    name: string,
    shape: readonly number[],
    codes: Uint8Array,
    groupSize: number,
  ): QuantizedWeight {
    const hasGlobal = this.#tensors.has(`${name}.global`);
    const grid = [shape[0] as number, groupsPerRow(shape[1] as number, groupSize)];
    const scales = scaleValues(this.read(`${name}.scale`).bytes, hasGlobal ? "nvfp4" : "mxfp4");
    const tensor = {
      codes: Tensor.from(codes, shape, "u8", this.#device),
      scale: Tensor.from(scales, grid, "f32", this.#device),
    };
    if (!hasGlobal) return tensor;
    const { bytes } = this.read(`${name}.global`);
    return { ...tensor, global: Tensor.from(bytes, [1], "f32", this.#device) };
  }
}
