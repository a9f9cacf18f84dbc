/**
 * Writes a Hugging Face folder shaped like its source: the same shards with the same tensors in the
 * same order, some of them replaced, the tokenizer and its companions copied.
 *
 * Everything is written into a staging folder inside the output and renamed when all of it is on
 * disk; config.json goes first when old files are replaced and comes last when new ones appear, so a
 * folder with a config.json is always a complete one.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError, makeFolder, syncFolder } from "../util/fs.ts";
import { formatLike, isJsonObject, type JsonObject } from "../util/json.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";
import { type Checkpoint, type CheckpointTensor, INDEX_NAME, type Shard } from "./folder.ts";
import { SafetensorsWriter } from "./safetensors.ts";
import { type TensorSpec, tensorBytes } from "./safetensors-header.ts";
import { hasFile, sourceFile } from "./source-files.ts";

/** Files that travel unchanged with the weights. */
const COMPANIONS =
  /^(tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|tokenizer\.model|vocab\.json|vocab\.txt|merges\.txt|added_tokens\.json|generation_config\.json|chat_template\.(jinja|json)|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.-]*)$/i;

/** Files of an earlier output that a new one replaces. */
const CHECKPOINT_FILES = /(^config\.json|\.safetensors|\.safetensors\.index\.json)$/;

const STAGING = /^\.staging-\d+$/;
const CHUNK_BYTES = 8 * 2 ** 20;

/** What `assemble` writes. */
export interface OutputContent {
  readonly source: Checkpoint;
  /** The new config.json. */
  readonly config: JsonObject;
  /**
   * New bytes of a tensor (same dtype and shape), or undefined to copy the source's. Called once per
   * tensor, in the order of writing; only one result is held at a time.
   */
  readonly tensorBytes: (
    tensor: TensorSpec,
  ) => Uint8Array | undefined | Promise<Uint8Array | undefined>;
  /** Tensors that the source does not have; they go at the end of its last shard. */
  readonly extraTensors?: readonly TensorSpec[];
  /** Further JSON files, by name. */
  readonly extraJson?: Readonly<Record<string, JsonObject>>;
  readonly signal?: AbortSignal;
}

/** Is this the name of a folder in which an unfinished checkpoint is being written, by any process? */
export function isStagingName(name: string): boolean {
  return STAGING.test(name);
}

/** A folder that is going to hold a checkpoint. */
export class OutputFolder {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  /**
   * Claims a folder before any work is done, so that a wrong path costs seconds and not hours:
   * creates it, and refuses one that holds files (other than `keep`) unless `overwrite` is set.
   *
   * Throws: AQ_FILE when it cannot be written, AQ_ARG when it holds files or is the source itself.
   */
  static claim(
    dir: string,
    options: { readonly source: string; readonly overwrite?: boolean; readonly keep?: string[] },
  ): OutputFolder {
    const keep = new Set(options.keep ?? []);
    try {
      makeFolder(dir);
      if (isSameFolder(dir, options.source)) {
        throw new AqError("AQ_ARG", `The output ${dir} is the model's own folder; name another.`);
      }
      const names = fs.readdirSync(dir).filter((n) => !keep.has(n) && !isStagingName(n));
      if (names.length > 0 && !options.overwrite) {
        throw new AqError(
          "AQ_ARG",
          `The output ${dir} is not empty (${names.slice(0, 3).join(", ")}${names.length > 3 ? ", ..." : ""}); name another folder, or overwrite it.`,
        );
      }
      fs.accessSync(dir, fs.constants.W_OK | fs.constants.X_OK);
    } catch (error) {
      throw fileError("write into", dir, error);
    }
    return new OutputFolder(dir);
  }

  /**
   * Writes the whole checkpoint. After any error before the final renames the staging folder is gone
   * and what the folder held before is still there.
   *
   * Throws: AQ_STOPPED when the signal fires, AQ_FILE, AQ_INTERNAL for bytes of a wrong length.
   */
  async assemble(content: OutputContent): Promise<void> {
    this.#removeStagings();
    const staging = path.join(this.dir, `.staging-${process.pid}`);
    try {
      fs.mkdirSync(staging);
      const { shards } = content.source;
      for (const [i, shard] of shards.entries()) {
        const extra = i === shards.length - 1 ? (content.extraTensors ?? []) : [];
        await writeShard(staging, shard, extra, content);
      }
      if (content.source.index) {
        writeFileAtomic(path.join(staging, INDEX_NAME), indexText(content));
      }
      for (const name of companions(content.source.dir)) {
        copyFile(sourceFile(content.source.dir, name), path.join(staging, name));
      }
      for (const [name, json] of Object.entries(content.extraJson ?? {})) {
        writeFileAtomic(path.join(staging, name), `${JSON.stringify(json, null, 2)}\n`);
      }
      const config = formatLike(content.config, content.source.configText);
      writeFileAtomic(path.join(staging, "config.json"), config);
      throwIfStopped(content.signal);
      this.#publish(staging);
    } catch (error) {
      throw fileError("write", this.dir, error);
    } finally {
      fs.rmSync(staging, { recursive: true, force: true });
    }
  }

  #publish(staging: string): void {
    const fresh = fs.readdirSync(staging).filter((n) => n !== "config.json");
    fs.rmSync(path.join(this.dir, "config.json"), { force: true });
    syncFolder(this.dir);
    for (const name of fs.readdirSync(this.dir)) {
      const isStale = CHECKPOINT_FILES.test(name) || COMPANIONS.test(name);
      if (isStale && !fresh.includes(name)) fs.rmSync(path.join(this.dir, name));
    }
    for (const name of fresh) this.#rename(staging, name);
    syncFolder(this.dir);
    this.#rename(staging, "config.json");
    syncFolder(this.dir);
  }

  #rename(staging: string, name: string): void {
    fs.renameSync(path.join(staging, name), path.join(this.dir, name));
  }

  /** Removes what a killed run of the same output left. */
  #removeStagings(): void {
    try {
      for (const name of fs.readdirSync(this.dir).filter(isStagingName)) {
        fs.rmSync(path.join(this.dir, name), { recursive: true, force: true });
      }
    } catch (error) {
      throw fileError("clean", this.dir, error);
    }
  }
}

async function writeShard(
  staging: string,
  shard: Shard,
  extra: readonly TensorSpec[],
  content: OutputContent,
): Promise<void> {
  const metadata = { format: "pt", ...shard.metadata };
  const specs = [...shard.tensors, ...extra];
  const writer = new SafetensorsWriter(path.join(staging, shard.file), specs, metadata);
  try {
    for (const spec of extra) {
      if (content.source.has(spec.name)) {
        throw new AqError("AQ_INTERNAL", `The source already has the extra tensor "${spec.name}".`);
      }
    }
    for (const tensor of shard.tensors) {
      throwIfStopped(content.signal);
      const bytes = await content.tensorBytes(tensor);
      if (bytes) writer.append(tensor.name, bytes);
      else copyTensor(content.source, tensor, writer);
    }
    for (const spec of extra) {
      const bytes = await content.tensorBytes(spec);
      if (!bytes) throw new AqError("AQ_INTERNAL", `Nothing to write for "${spec.name}".`);
      writer.append(spec.name, bytes);
    }
    writer.finish();
  } catch (error) {
    writer.abort();
    throw error;
  }
}

function copyTensor(source: Checkpoint, tensor: CheckpointTensor, writer: SafetensorsWriter): void {
  const chunk = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, tensor.bytes));
  for (let at = 0; at < tensor.bytes; at += chunk.length) {
    const part = chunk.subarray(0, Math.min(chunk.length, tensor.bytes - at));
    source.readInto(tensor.name, part, at);
    writer.append(tensor.name, part);
  }
}

/** The source's index with the extra tensors; the others keep their sizes. */
function indexText({ source, extraTensors = [] }: OutputContent): string {
  let bytes = 0;
  for (const tensor of source.tensors.values()) bytes += tensor.bytes;
  const last = source.shards.at(-1)?.file ?? "";
  const map: JsonObject = {};
  for (const spec of extraTensors) {
    bytes += tensorBytes(spec.dtype, spec.shape, spec.name);
    map[spec.name] = last;
  }
  const old = source.index?.["metadata"];
  const known = source.index?.["weight_map"];
  const index = {
    ...source.index,
    metadata: { ...(isJsonObject(old) ? old : {}), total_size: bytes },
    weight_map: { ...(isJsonObject(known) ? known : {}), ...map },
  };
  return `${JSON.stringify(index, null, 2)}\n`;
}

function isSameFolder(a: string, b: string): boolean {
  const [x, y] = [a, b].map((dir) => fs.statSync(dir, { throwIfNoEntry: false }));
  return x !== undefined && x.ino === y?.ino && x.dev === y.dev;
}

/** Files of a checkpoint folder that travel unchanged with its weights. */
export function companions(dir: string): string[] {
  return fs.readdirSync(dir).filter((name) => COMPANIONS.test(name) && hasFile(dir, name));
}

/** Copies a small file; it appears when it is on disk. Throws: AQ_FILE. */
export function copyFile(from: string, to: string): void {
  const bytes = fs.readFileSync(from);
  writeFileAtomic(to, bytes);
}

function throwIfStopped(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new AqError("AQ_STOPPED", "The run was stopped while it wrote the checkpoint.");
  }
}
