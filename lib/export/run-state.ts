/**
 * The run folder, `<out>/aq/`: job.json, and for each finished block the codes, scales and zeros of
 * its linears with the folded gains and biases. Exports are written from it without rounding again.
 *
 * A block counts as finished once job.json names its hash; files that a killed process left half
 * written have names of their own and are removed by the next run.
 *
 * A run that polishes keeps beside each block what was learned for it, until polish is done, and has
 * two sets of blocks then: job.json says which of them counts.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { SafetensorsWriter } from "../checkpoint/safetensors.ts";
import type { TensorSpec as FileTensor } from "../checkpoint/safetensors-header.ts";
import type { Model, TensorSpec } from "../models/family.ts";
import type { QuantizedWeight } from "../quant/quantizer.ts";
import { scaleBytes } from "../quant/quantizers.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { fileError, makeFolder, syncFolder } from "../util/fs.ts";
import { sha256File } from "../util/hash.ts";
import { readJsonFile } from "../util/json.ts";
import { RUN_FOLDER } from "../util/layout.ts";
import { isTemporaryName, writeFileAtomic } from "../util/unfinished-file.ts";
import { type BlockSet, checkJob, type Job } from "./job.ts";
import { type LearnedBlock, writeLearnedBlock } from "./learned-block.ts";
import { LOCK_NAME } from "./run-lock.ts";
import { StoredBlock } from "./stored-block.ts";
import type { FinishedWeights } from "./weights.ts";

const BLOCKS_FOLDER: BlockSet = "blocks";
const POLISHED_FOLDER: BlockSet = "polished";
const LEARNED_FOLDER = "polish";
const JOB_NAME = "job.json";

/** Files of one run. */
export class RunState {
  readonly dir: string;

  constructor(out: string) {
    this.dir = path.join(out, RUN_FOLDER);
  }

  /** Starts with an empty folder, but for the lock. Throws: AQ_FILE. */
  reset(): void {
    try {
      // First of all, so that a process killed in the middle leaves no job without its blocks.
      fs.rmSync(this.#job, { force: true });
      fs.mkdirSync(this.dir, { recursive: true });
      for (const name of fs.readdirSync(this.dir).filter((name) => name !== LOCK_NAME)) {
        fs.rmSync(path.join(this.dir, name), { recursive: true, force: true });
      }
      fs.mkdirSync(this.#folder(BLOCKS_FOLDER), { recursive: true });
      syncFolder(this.dir);
      syncFolder(path.dirname(this.dir));
    } catch (error) {
      throw fileError("create", this.dir, error);
    }
  }

  /** Removes what killed processes left half written. Throws: AQ_FILE. */
  clean(): void {
    try {
      fs.mkdirSync(this.#folder(BLOCKS_FOLDER), { recursive: true });
      const folders = [BLOCKS_FOLDER, LEARNED_FOLDER, POLISHED_FOLDER].map((name) =>
        this.#folder(name),
      );
      for (const dir of [this.dir, ...folders.filter((name) => fs.existsSync(name))]) {
        for (const name of fs.readdirSync(dir).filter(isTemporaryName)) {
          fs.rmSync(path.join(dir, name), { force: true });
        }
      }
    } catch (error) {
      throw fileError("clean", this.dir, error);
    }
  }

  /** True when there is nothing in the folder that a run could have finished. */
  get isBlank(): boolean {
    const names = (dir: string): string[] => {
      try {
        return fs.readdirSync(dir).filter((name) => !isTemporaryName(name));
      } catch {
        return [];
      }
    };
    const isOwn = (name: string): boolean => name === BLOCKS_FOLDER || name === LOCK_NAME;
    return names(this.#folder(BLOCKS_FOLDER)).length === 0 && names(this.dir).every(isOwn);
  }

  /** The job, or null when there is none. Throws: AQ_FILE, AQ_FORMAT when it is damaged. */
  readJob(): Job | null {
    if (!fs.existsSync(this.#job)) return null;
    return checkJob(readJsonFile(this.#job), this.#job);
  }

  writeJob(job: Job): void {
    writeFileAtomic(this.#job, `${JSON.stringify(job, null, 2)}\n`);
  }

  blockFile(block: number, set: BlockSet = "blocks"): string {
    return path.join(this.#folder(set), fileName(block));
  }

  /** Hash of a stored block, or null when there is none. Throws: AQ_FILE. */
  blockHash(block: number, set: BlockSet = "blocks"): string | null {
    return hashOf(this.blockFile(block, set));
  }

  learnedFile(block: number): string {
    return path.join(this.#folder(LEARNED_FOLDER), fileName(block));
  }

  /** Hash of what was learned for a block, or null when it is not kept. Throws: AQ_FILE. */
  learnedHash(block: number): string | null {
    return hashOf(this.learnedFile(block));
  }

  /** Keeps what was learned for a block. Throws: AQ_FILE. */
  writeLearned(block: number, learned: LearnedBlock): void {
    makeFolder(this.#folder(LEARNED_FOLDER));
    writeLearnedBlock(this.learnedFile(block), learned);
  }

  /** Drops what was learned for all blocks. Throws: AQ_FILE. */
  dropLearned(): void {
    this.#drop(LEARNED_FOLDER);
  }

  /** Drops the polished blocks. Throws: AQ_FILE. */
  dropPolished(): void {
    this.#drop(POLISHED_FOLDER);
  }

  /** Stores a finished block under the names that `model` has for its tensors. Throws: AQ_FILE. */
  writeBlock(
    block: number,
    model: Model,
    finished: FinishedWeights,
    metadata: Readonly<Record<string, string>>,
    set: BlockSet = "blocks",
  ): void {
    makeFolder(this.#folder(set));
    const specs = new Map(model.blockTensors(block).map((spec) => [spec.key, spec]));
    const parts: Part[] = [];
    for (const { key } of model.linears) {
      const { name } = specs.get(key) as TensorSpec;
      const weight = finished.quantized[key];
      if (weight) parts.push(...(weight.zero ? integerParts : floatParts)(name, weight));
    }
    for (const [key, tensor] of Object.entries(finished.others)) {
      const { name, shape } = specs.get(key) as TensorSpec;
      parts.push({ spec: { name, dtype: "F32", shape }, bytes: () => rawBytes(tensor) });
    }
    const tensors = parts.map(({ spec }) => spec);
    const writer = new SafetensorsWriter(this.blockFile(block, set), tensors, {
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

  /** Opens a stored block, whose tensors are then made on `device`. Throws: AQ_FILE, AQ_FORMAT. */
  openBlock(block: number, set: BlockSet = "blocks", device = "cpu"): StoredBlock {
    return new StoredBlock(this.blockFile(block, set), device);
  }

  get #job(): string {
    return path.join(this.dir, JOB_NAME);
  }

  #folder(name: string): string {
    return path.join(this.dir, name);
  }

  #drop(name: string): void {
    try {
      fs.rmSync(this.#folder(name), { recursive: true, force: true });
      syncFolder(this.dir);
    } catch (error) {
      throw fileError("remove", this.#folder(name), error);
    }
  }
}

/** A tensor of a file, and its bytes. */
interface Part {
  readonly spec: FileTensor;
  readonly bytes: () => Uint8Array;
}

function integerParts(name: string, { codes, scale, zero }: QuantizedWeight): Part[] {
  if (!zero) throw new TypeError("whole numbers have zero points");
  const zeros = zeroType(zero);
  return [
    codesPart(name, codes),
    {
      spec: { name: `${name}.scale`, dtype: "F16", shape: scale.shape },
      bytes: () => castBytes(scale, "f16"),
    },
    {
      spec: { name: `${name}.zero`, dtype: zeros.file, shape: zero.shape },
      bytes: () => castBytes(zero, zeros.engine),
    },
  ];
}

/** Scales as the bytes that every format of 4-bit floats stores. */
function floatParts(name: string, { codes, scale, global }: QuantizedWeight): Part[] {
  const format = global ? "nvfp4" : "mxfp4";
  const parts: Part[] = [
    codesPart(name, codes),
    {
      spec: { name: `${name}.scale`, dtype: "U8", shape: scale.shape },
      bytes: () => scaleBytes(scale.floats(), format),
    },
  ];
  if (global) {
    parts.push({
      spec: { name: `${name}.global`, dtype: "F32", shape: [1] },
      bytes: () => rawBytes(global),
    });
  }
  return parts;
}

function codesPart(name: string, codes: Tensor): Part {
  return {
    spec: { name: `${name}.codes`, dtype: "U8", shape: codes.shape },
    bytes: () => rawBytes(codes),
  };
}

function fileName(block: number): string {
  return `block-${String(block).padStart(4, "0")}.safetensors`;
}

function hashOf(file: string): string | null {
  return fs.existsSync(file) ? sha256File(file) : null;
}

/** Bytes of a tensor as they are. */
function rawBytes(tensor: Tensor): Uint8Array {
  const data = tensor.read();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** Zero points are codes, but for a published grid of values that all have one sign. */
function zeroType(zero: Tensor): { file: "U8" | "F32"; engine: "u8" | "f32" } {
  const fit = zero.floats().every((z) => z >= 0 && z <= 255);
  return fit ? { file: "U8", engine: "u8" } : { file: "F32", engine: "f32" };
}

function castBytes(tensor: Tensor, dtype: "f16" | "f32" | "u8"): Uint8Array {
  return scope(() => ({
    bytes: rawBytes(invokeOne("cast", [tensor], { dtype: dtypeCode(dtype) })),
  })).bytes;
}
