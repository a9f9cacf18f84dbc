/**
 * A finished run as formats see it: the output folder's configuration and outer tensors, and the codes
 * of the run state. One block's file is open at a time, and one tensor is in memory.
 */

import * as fs from "node:fs";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { hasFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { AQ_CONFIG_NAME, type AqConfig, extrasOf, readAqConfig } from "../export/aq-config.ts";
import { type BlockSet, type Job, liveBlocks } from "../export/job.ts";
import { checkOwnType } from "../export/own-type.ts";
import { RunState } from "../export/run-state.ts";
import type { StoredBlock } from "../export/stored-block.ts";
import type { LinearSpec, Model } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { groupsPerRow } from "../quant/scheme.ts";
import { sha256File } from "../util/hash.ts";
import type { Setting } from "./setting.ts";

/** A quantized linear of a block, before its parts are read. */
export interface StoredLinear {
  readonly block: number;
  readonly key: string;
  /** What it reads. */
  readonly activation: string;
  /** Of the weight: ends in ".weight". */
  readonly name: string;
  /** Without ".weight". */
  readonly prefix: string;
  /** O */
  readonly rows: number;
  /** I */
  readonly columns: number;
  /** G */
  readonly groups: number;
  /** Columns of a group; the last one of a row may be short. */
  readonly group: number;
}

export class FinishedRun {
  /** The folder that was `--out`. */
  readonly dir: string;
  readonly checkpoint: Checkpoint;
  readonly config: AqConfig;
  readonly setting: Setting;
  readonly job: Job;
  /** SHA-256 of the file of each block. */
  readonly hashes: readonly string[];
  readonly #state: RunState;
  readonly #set: BlockSet;
  readonly #inputGlobals: readonly Readonly<Record<string, number>>[];
  #open: { readonly index: number; readonly block: StoredBlock } | undefined;
  readonly #checked = new Set<number>();

  private constructor(dir: string, state: RunState, job: Job, checkpoint: Checkpoint) {
    const config = configOf(dir);
    checkOwnType(dir, checkpoint.config, config);
    const has = (name: string): boolean => checkpoint.has(name);
    const model = openModel(checkpoint.config, has, extrasOf(config));
    const { set, tokenClips, inputGlobals } = liveBlocks(job);
    if (tokenClips.length !== model.shape.blocks) {
      throw damaged(dir, `its job.json lists ${tokenClips.length} of ${model.shape.blocks} blocks`);
    }
    this.dir = dir;
    this.checkpoint = checkpoint;
    this.config = config;
    this.job = job;
    this.hashes = (set === "polished" ? (job.polish?.blocks ?? []) : job.finished).map(
      ({ sha256 }) => sha256,
    );
    this.setting = {
      model,
      folder: dir,
      config: checkpoint.config,
      scheme: config.scheme,
      added: config.added ?? [],
      tokenClips: tokenClips.some((clips) => Object.keys(clips).length > 0),
      kept: config.kept ?? [],
    };
    this.#inputGlobals = inputGlobals;
    this.#state = state;
    this.#set = set;
  }

  /**
   * Opens the folder that a finished run wrote.
   *
   * Throws: AQ_ARG when there is no finished run in it, AQ_FILE and AQ_FORMAT when it is damaged.
   */
  static open(dir: string): FinishedRun {
    if (!fs.statSync(dir, { throwIfNoEntry: false })?.isDirectory()) {
      throw new AqError("AQ_ARG", `There is no folder ${dir}; name the --out of a finished run.`);
    }
    const state = new RunState(dir);
    const job = state.readJob();
    if (!job) {
      throw new AqError(
        "AQ_ARG",
        `${dir} holds no run (it has no aq/job.json); name the folder that was --out of quantize.`,
      );
    }
    if (job.status !== "done") {
      throw new AqError(
        "AQ_ARG",
        `The run in ${dir} is not finished (${job.finished.length} of ${job.blocks} blocks); the command that began it goes on with it.`,
      );
    }
    const checkpoint = openCheckpoint(dir);
    try {
      return new FinishedRun(dir, state, job, checkpoint);
    } catch (error) {
      checkpoint.close();
      throw error;
    }
  }

  get model(): Model {
    return this.setting.model;
  }

  /** The quantized linears of a block, in the order of its tensors. */
  linears(block: number): StoredLinear[] {
    const { scheme, kept } = this.setting;
    const specs = new Map(this.model.linears.map((linear) => [linear.key, linear]));
    return this.model.blockTensors(block).flatMap(({ key, name }) => {
      const linear = kept[block]?.includes(key) ? undefined : specs.get(key);
      return linear ? [describe(linear, block, name, scheme.groupSize)] : [];
    });
  }

  /** Codes u8 [O, I]. Throws: AQ_FILE, AQ_FORMAT. */
  codes({ block, name, rows, columns }: StoredLinear): Uint8Array {
    return this.#part(block, `${name}.codes`, ["u8"], [rows, columns]).bytes;
  }

  /** Scales [O, G] of 4-bit floats, as bytes of their type. */
  scaleBytes({ block, name, rows, groups }: StoredLinear): Uint8Array {
    return this.#part(block, `${name}.scale`, ["u8"], [rows, groups]).bytes;
  }

  /** The scale of a whole matrix of NVFP4. */
  globalScale({ block, name }: StoredLinear): number {
    return floats(this.#part(block, `${name}.global`, ["f32"], [1]).bytes)[0] as number;
  }

  /** The scale of all that the linear reads, in NVFP4. Throws: AQ_FORMAT. */
  inputGlobal({ block, name, activation }: StoredLinear): number {
    const global = this.#inputGlobals[block]?.[activation];
    if (global !== undefined) return Math.fround(global);
    throw damaged(this.dir, `its job.json has no global scale of what "${name}" reads`);
  }

  /** Scales [O, G], as the bits of float16. */
  scales({ block, name, rows, groups }: StoredLinear): Uint16Array {
    const { bytes } = this.#part(block, `${name}.scale`, ["f16"], [rows, groups]);
    return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  }

  /** Zero points [O, G]: codes, or float32 where one of the tensor's is none. */
  zeros({ block, name, rows, groups }: StoredLinear): Uint8Array | Float32Array {
    const { bytes, dtype } = this.#part(block, `${name}.zero`, ["u8", "f32"], [rows, groups]);
    return dtype === "u8" ? bytes : floats(bytes);
  }

  /** Is a zero point of the linear no code? */
  hasWideZeros(linear: StoredLinear): boolean {
    // Without the published grids it cannot be, and then nothing need be read.
    if (this.setting.scheme.grids !== "published") return false;
    const top = 2 ** this.setting.scheme.wbits - 1;
    return this.zeros(linear).some((z) => !(z >= 0 && z <= top));
  }

  /** Zero points that a format must be able to write as codes. Throws: AQ_MODEL. */
  zeroCodes(linear: StoredLinear, format: string): Uint8Array {
    const zeros = this.zeros(linear);
    const top = 2 ** this.setting.scheme.wbits - 1;
    const bad = zeros.find((z) => !(z >= 0 && z <= top));
    if (zeros instanceof Uint8Array && bad === undefined) return zeros;
    throw new AqError(
      "AQ_MODEL",
      `"${linear.name}" has a zero point of ${bad}, and ${format} holds 0 to ${top}: the published grids leave zero out where all weights of a group have one sign; write gguf or aq, or quantize with --recipe default`,
    );
  }

  /** A gain, bias or run-time matrix of a block, f32. */
  plain(block: number, name: string, shape: readonly number[]): Float32Array {
    return floats(this.#part(block, name, ["f32"], shape).bytes);
  }

  /** Opens the file of a block, once its hash is known to be right; the caller closes it. */
  openBlock(index: number): StoredBlock {
    this.#check(index);
    return this.#state.openBlock(index, this.#set);
  }

  close(): void {
    this.#open?.block.close();
    this.#open = undefined;
    this.checkpoint.close();
  }

  #part(
    index: number,
    name: string,
    dtypes: readonly string[],
    shape: readonly number[],
  ): { readonly bytes: Uint8Array; readonly dtype: string } {
    const part = this.#block(index).read(name);
    const isAsExpected =
      dtypes.includes(part.dtype) &&
      part.shape.length === shape.length &&
      part.shape.every((d, i) => d === shape[i]);
    if (isAsExpected) return part;
    const file = this.#state.blockFile(index, this.#set);
    throw new AqError(
      "AQ_FORMAT",
      `${file}: expected "${name}" as ${dtypes.join(" or ")} [${shape.join(", ")}], got ${part.dtype} [${part.shape.join(", ")}]; the same quantize command computes the run anew with --overwrite`,
    );
  }

  #block(index: number): StoredBlock {
    if (this.#open?.index !== index) {
      this.#open?.block.close();
      this.#open = undefined;
      this.#open = { index, block: this.openBlock(index) };
    }
    return this.#open.block;
  }

  /** The block's file is the one that job.json lists. */
  #check(index: number): void {
    if (this.#checked.has(index)) return;
    const file = this.#state.blockFile(index, this.#set);
    const isThere = fs.existsSync(file);
    if (!isThere || sha256File(file) !== this.hashes[index]) {
      const what = isThere ? "was changed or cut since it was written" : "is missing";
      throw new AqError(
        "AQ_FILE",
        `${file} ${what}; copy the whole run folder again, or run the quantize command with --overwrite`,
      );
    }
    this.#checked.add(index);
  }
}

function describe(
  { key, activation, out: rows, in: columns }: LinearSpec,
  block: number,
  name: string,
  groupSize: number,
): StoredLinear {
  const groups = groupsPerRow(columns, groupSize);
  const prefix = name.replace(/\.weight$/, "");
  return {
    block,
    key,
    activation,
    name,
    prefix,
    rows,
    columns,
    groups,
    group: groupSize || columns,
  };
}

function configOf(dir: string): AqConfig {
  const config = readAqConfig(dir);
  if (config) return config;
  const what = hasFile(dir, AQ_CONFIG_NAME) ? "cannot be read" : "is missing";
  throw damaged(dir, `its ${AQ_CONFIG_NAME} ${what}`);
}

function damaged(dir: string, what: string): AqError {
  return new AqError(
    "AQ_FORMAT",
    `The run in ${dir} is damaged, ${what}; copy the whole folder again, or run the quantize command with --overwrite`,
  );
}

function floats(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}
