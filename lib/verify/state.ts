/**
 * The saved state of a finished run, read with this module's own code: codes, scales and zeros of every
 * linear, the other tensors of the blocks, and, for what lies outside them, the run's output.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import type { Float4Name } from "../autograd/float4.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { readSafetensorsHeader } from "../checkpoint/safetensors.ts";
import type { SafetensorsDType, TensorEntry } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import { type AqConfig, extrasOf, readAqConfig } from "../export/aq-config.ts";
import { liveBlocks } from "../export/job.ts";
import { checkOwnType } from "../export/own-type.ts";
import { RunState } from "../export/run-state.ts";
import type { Model, TensorSpec } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { decodeFloats, type FloatName } from "../packed/half.ts";
import { groupCount } from "../packed/linear.ts";
import { openForReading, readFully } from "../util/fs.ts";
import { sha256File } from "../util/hash.ts";
import type { JsonObject } from "../util/json.ts";

/** A linear as the run found it. */
export type StateLinear = StateIntegers | StateFloats;

interface StateSize {
  readonly spec: TensorSpec;
  readonly rows: number;
  readonly columns: number;
  /** Columns of a group; at most I. */
  readonly group: number;
  readonly groups: number;
  /** [O, I] */
  readonly codes: Uint8Array;
}

/** W = value(code) (scale / global) */
export interface StateFloats extends StateSize {
  readonly kind: Float4Name;
  /** [O, G], as the run stores them. */
  readonly scaleBytes: Uint8Array;
  /** Of the whole matrix, and of what the linear reads; null where there is none. */
  readonly global: number | null;
  readonly input: number | null;
}

/** W = (code - zero) scale */
export interface StateIntegers extends StateSize {
  readonly kind: "integers";
  /** [O, G], float16 bits and values. */
  readonly scaleBits: Uint16Array;
  readonly scales: Float32Array;
  /** [O, G] */
  readonly zeros: Float32Array;
}

/** Types of tensors that are not quantized. */
export type PlainType = FloatName | "F64";

/** A tensor that is not quantized, as it is stored. */
export interface PlainTensor {
  readonly dtype: PlainType;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Its numbers. */
export function numbersOf({ dtype, bytes }: PlainTensor): Float32Array | Float64Array {
  return dtype === "F64" ? new Float64Array(bytes.buffer) : decodeFloats(bytes, dtype);
}

interface OpenBlock {
  readonly index: number;
  readonly fd: number;
  readonly file: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
}

/** An open run; whoever opens it closes it. */
export class SavedRun {
  readonly dir: string;
  /** The run's own output. */
  readonly output: Checkpoint;
  readonly config: AqConfig;
  readonly model: Model;
  /** SHA-256 of each block's file. */
  readonly hashes: readonly string[];
  /** Folder of the model that was quantized, and what made the run this run. */
  readonly source: string;
  readonly identity: JsonObject;
  readonly #files: readonly string[];
  readonly #blockOf = new Map<string, number>();
  /** What linears read, by the name of their weight. */
  readonly #activations = new Map<string, string>();
  readonly #inputGlobals: readonly Readonly<Record<string, number>>[];
  #open: OpenBlock | undefined;

  /** Throws: AQ_ARG where there is no finished run, AQ_FILE and AQ_FORMAT where it is damaged. */
  constructor(dir: string) {
    const state = new RunState(dir);
    const job = state.readJob();
    if (job?.status !== "done") {
      const what = job ? "is not finished" : "holds no run (no aq/job.json)";
      throw new AqError("AQ_ARG", `${dir} ${what}; name the --out of a finished run with --run`);
    }
    const { set, inputGlobals } = liveBlocks(job);
    const live = set === "polished" ? (job.polish?.blocks ?? []) : job.finished;
    this.dir = dir;
    this.hashes = live.map(({ sha256 }) => sha256);
    this.#inputGlobals = inputGlobals;
    this.#files = live.map((_, i) => state.blockFile(i, set));
    this.source = job.model;
    this.identity = job.identity;
    const config = readAqConfig(dir);
    if (!config) throw new AqError("AQ_FORMAT", `${dir} has no aq_config.json; copy it again`);
    this.config = config;
    this.output = openCheckpoint(dir);
    try {
      checkOwnType(dir, this.output.config, config);
      const has = (name: string): boolean => this.output.has(name);
      this.model = openModel(this.output.config, has, extrasOf(config));
      if (this.model.shape.blocks !== live.length) {
        throw new AqError(
          "AQ_FORMAT",
          `${dir}: its job.json lists ${live.length} of ${this.model.shape.blocks} blocks; copy the whole folder again`,
        );
      }
      const read = new Map(this.model.linears.map(({ key, activation }) => [key, activation]));
      for (let i = 0; i < live.length; i++) {
        for (const { key, name } of this.model.blockTensors(i)) {
          this.#blockOf.set(name, i);
          const activation = read.get(key);
          if (activation !== undefined) this.#activations.set(name, activation);
        }
      }
    } catch (error) {
      this.output.close();
      throw error;
    }
  }

  /** Is this the weight of a quantized linear? Throws: AQ_FILE. */
  isLinear(name: string): boolean {
    if (!this.#activations.has(name)) return false;
    const block = this.#blockOf.get(name) as number;
    return this.#block(block).tensors.has(`${name}.codes`);
  }

  /** Is this the weight of a linear that the run left as it was? Throws: AQ_FILE. */
  isKept(name: string): boolean {
    return this.#activations.has(name) && !this.isLinear(name);
  }

  /** Every tensor of the blocks, in their order. */
  *blockSpecs(): Generator<TensorSpec> {
    for (let i = 0; i < this.model.shape.blocks; i++) yield* this.model.blockTensors(i);
  }

  /** The tensors of the block that one of them belongs to. */
  blockOf(name: string): readonly TensorSpec[] {
    return this.model.blockTensors(this.#blockOf.get(name) as number);
  }

  /** Throws: AQ_FILE, AQ_FORMAT. */
  linear(spec: TensorSpec): StateLinear {
    const [rows, columns] = spec.shape as [number, number];
    const group = Math.min(columns, this.config.scheme.groupSize || columns);
    const groups = groupCount(columns, group);
    const codes = this.#read(spec.name, `${spec.name}.codes`, ["U8"], rows * columns).bytes;
    const size = { spec, rows, columns, group, groups, codes };
    const { numbers } = this.config.scheme;
    if (numbers) return { ...size, ...this.#floats(spec, numbers, rows * groups) };
    const scale = this.#read(spec.name, `${spec.name}.scale`, ["F16"], rows * groups).bytes;
    const zero = this.#read(spec.name, `${spec.name}.zero`, ["U8", "F32"], rows * groups);
    const scaleBits = new Uint16Array(scale.buffer, 0, rows * groups);
    const zeros =
      zero.dtype === "U8" ? Float32Array.from(zero.bytes) : decodeFloats(zero.bytes, "F32");
    const scales = decodeFloats(scale, "F16");
    return { kind: "integers", ...size, scaleBits, scales, zeros };
  }

  #floats(
    { name }: TensorSpec,
    kind: Float4Name,
    scales: number,
  ): Pick<StateFloats, "kind" | "scaleBytes" | "global" | "input"> {
    const scaleBytes = this.#read(name, `${name}.scale`, ["U8"], scales).bytes;
    if (kind === "mxfp4") return { kind, scaleBytes, global: null, input: null };
    const { bytes } = this.#read(name, `${name}.global`, ["F32"], 1);
    const [global = Number.NaN] = decodeFloats(bytes, "F32");
    const block = this.#blockOf.get(name) as number;
    const input = this.#inputGlobals[block]?.[this.#activations.get(name) as string] ?? null;
    return { kind, scaleBytes, global, input };
  }

  /**
   * Any other tensor: of a block as it was calibrated, else as the run's output has it. Throws: AQ_FILE,
   * AQ_FORMAT, AQ_MODEL.
   */
  plain(spec: TensorSpec): PlainTensor {
    const count = spec.shape.reduce((product, d) => product * d, 1);
    if (this.#blockOf.has(spec.name)) {
      const { bytes } = this.#read(spec.name, spec.name, ["F32"], count);
      return { dtype: "F32", bytes };
    }
    return readPlain(this.output, spec.name);
  }

  close(): void {
    this.#closeBlock();
    this.output.close();
  }

  #closeBlock(): void {
    if (this.#open) fs.closeSync(this.#open.fd);
    this.#open = undefined;
  }

  #read(
    owner: string,
    name: string,
    dtypes: readonly SafetensorsDType[],
    elements: number,
  ): { readonly bytes: Uint8Array<ArrayBuffer>; readonly dtype: SafetensorsDType } {
    const { fd, file, tensors } = this.#block(this.#blockOf.get(owner) as number);
    const entry = tensors.get(name);
    const count = entry?.shape.reduce((product, d) => product * d, 1);
    if (!entry || !dtypes.includes(entry.dtype) || count !== elements) {
      const got = entry ? `${entry.dtype} [${entry.shape.join(", ")}]` : "nothing";
      throw new AqError(
        "AQ_FORMAT",
        `${file}: expected "${name}" as ${dtypes.join(" or ")} of ${elements} elements, got ${got}; the run folder is damaged`,
      );
    }
    const bytes = new Uint8Array(entry.bytes);
    readFully(fd, bytes, entry.offset, file);
    return { bytes, dtype: entry.dtype };
  }

  /** The file of a block, which must be the one that the job lists. */
  #block(index: number): OpenBlock {
    if (this.#open?.index === index) return this.#open;
    this.#closeBlock();
    const file = this.#files[index] as string;
    if (sha256File(file) !== this.hashes[index]) {
      throw new AqError(
        "AQ_FILE",
        `${file} is not what the run wrote (its SHA-256 is another than in job.json), so nothing can be compared with it; copy the run folder again`,
      );
    }
    const fd = openForReading(file);
    try {
      this.#open = { index, fd, file, tensors: readSafetensorsHeader(fd, file).tensors };
      return this.#open;
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }
}

/** A tensor of floats as its file has it. Throws: AQ_MODEL for another type, AQ_FILE. */
export function readPlain(checkpoint: Checkpoint, name: string): PlainTensor {
  const { dtype, file } = checkpoint.info(name);
  if (dtype !== "F64" && dtype !== "F32" && dtype !== "F16" && dtype !== "BF16") {
    throw new AqError(
      "AQ_MODEL",
      `"${name}" in ${path.join(checkpoint.dir, file)} is ${dtype}; only F64, F32, F16 and BF16 are compared`,
    );
  }
  const bytes = new Uint8Array(checkpoint.info(name).bytes);
  checkpoint.readInto(name, bytes);
  return { dtype, bytes };
}
