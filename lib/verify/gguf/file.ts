/**
 * GGUF version 3: metadata and the directory of tensors, every length and offset checked.
 *
 *     "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | tensor infos | padding | data
 *     pair: string key, u32 type, value        string: u64 length, bytes
 *     tensor info: string name, u32 n, u64 sizes[n] (the innermost first), u32 type, u64 offset
 */

import { AqError } from "../../errors.ts";
import { Cursor } from "./cursor.ts";

export type GgufScalar = number | bigint | boolean | string;
export type GgufValue = GgufScalar | readonly GgufScalar[];

/** Types of tensors that are read here: values and bytes of a block. */
export const GGUF_TYPES: Readonly<
  Record<number, { name: GgufType; block: number; bytes: number }>
> = {
  0: { name: "F32", block: 1, bytes: 4 },
  1: { name: "F16", block: 1, bytes: 2 },
  2: { name: "Q4_0", block: 32, bytes: 18 },
  3: { name: "Q4_1", block: 32, bytes: 20 },
  8: { name: "Q8_0", block: 32, bytes: 34 },
};

export type GgufType = "F32" | "F16" | "Q4_0" | "Q4_1" | "Q8_0";

export interface GgufTensor {
  readonly name: string;
  /** As everywhere else: the innermost size last. */
  readonly shape: readonly number[];
  readonly type: GgufType;
  /** From the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

const MAGIC = 0x46554747;
const VERSION = 3;
const MAX_NAME = 64;
const MAX_KEY = 2 ** 16 - 1;
const MAX_DIMS = 4;
const MAX_ALIGNMENT = 2 ** 16;

/** An open file; whoever opens it closes it. */
export class GgufFile {
  readonly file: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly #cursor: Cursor;

  /** Throws: AQ_FILE, AQ_FORMAT when it is malformed, AQ_MODEL for types that are not read here. */
  constructor(file: string) {
    this.file = file;
    this.#cursor = new Cursor(file);
    try {
      const cursor = this.#cursor;
      const { tensors, pairs } = readStart(cursor);
      this.metadata = readMetadata(cursor, pairs);
      const alignment = readAlignment(file, this.metadata);
      const infos = Array.from({ length: tensors }, () => readInfo(cursor, alignment));
      this.tensors = place(cursor, infos, alignment);
    } catch (error) {
      this.#cursor.close();
      throw error;
    }
  }

  /** All bytes of a tensor. Throws: AQ_FILE. */
  read({ offset, bytes }: GgufTensor): Uint8Array<ArrayBuffer> {
    return this.#cursor.bytesAt(offset, bytes);
  }

  close(): void {
    this.#cursor.close();
  }
}

function readStart(cursor: Cursor): { tensors: number; pairs: number } {
  if (cursor.left < 24 || cursor.u32() !== MAGIC) {
    throw new AqError("AQ_FORMAT", `${cursor.file} does not begin with "GGUF"; it is another file`);
  }
  const version = cursor.u32();
  if (version !== VERSION) {
    throw new AqError(
      "AQ_MODEL",
      `${cursor.file} is of GGUF version ${version}, expected ${VERSION}`,
    );
  }
  // Shortest forms of both, so that a wrong count is seen before anything is made of it.
  const tensors = cursor.count("the number of tensors", Math.floor(cursor.left / 32));
  const pairs = cursor.count("the number of metadata", Math.floor(cursor.left / 13));
  return { tensors, pairs };
}

function readMetadata(cursor: Cursor, pairs: number): Map<string, GgufValue> {
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < pairs; i++) {
    const key = cursor.string("a metadata key", MAX_KEY);
    if (metadata.has(key)) throw malformed(cursor, `the metadata ${quoted(key)} twice`);
    const type = cursor.u32();
    metadata.set(key, type === 9 ? readArray(cursor, key) : readScalar(cursor, type, key));
  }
  return metadata;
}

/** Bytes of the shortest value of each type. */
const SHORTEST = [1, 1, 2, 2, 4, 4, 4, 1, 8, Number.NaN, 8, 8, 8] as const;

function readArray(cursor: Cursor, key: string): GgufScalar[] {
  const type = cursor.u32();
  const shortest = SHORTEST[type] ?? Number.NaN;
  if (Number.isNaN(shortest)) throw malformed(cursor, `${quoted(key)} as an array of type ${type}`);
  const length = cursor.count(`the length of ${quoted(key)}`, Math.floor(cursor.left / shortest));
  const values: GgufScalar[] = [];
  for (let i = 0; i < length; i++) values.push(readScalar(cursor, type, key));
  return values;
}

function readScalar(cursor: Cursor, type: number, key: string): GgufScalar {
  switch (type) {
    case 0:
      return cursor.u8();
    case 1:
      return cursor.i8();
    case 2:
      return cursor.u16();
    case 3:
      return cursor.i16();
    case 4:
      return cursor.u32();
    case 5:
      return cursor.i32();
    case 6:
      return cursor.f32();
    case 7: {
      const byte = cursor.u8();
      if (byte > 1)
        throw malformed(cursor, `${quoted(key)} as true or false with the byte ${byte}`);
      return byte === 1;
    }
    case 8:
      return cursor.string(`${quoted(key)}`);
    case 10:
      return cursor.u64();
    case 11:
      return cursor.i64();
    case 12:
      return cursor.f64();
    default:
      throw malformed(cursor, `${quoted(key)} of type ${type}, which the format does not know`);
  }
}

function readAlignment(file: string, metadata: ReadonlyMap<string, GgufValue>): number {
  const alignment = metadata.get("general.alignment") ?? 32;
  const isPower = typeof alignment === "number" && Number.isInteger(Math.log2(alignment));
  if (!isPower || alignment < 8 || alignment > MAX_ALIGNMENT) {
    throw new AqError(
      "AQ_FORMAT",
      `${file}: general.alignment must be a power of two from 8 to ${MAX_ALIGNMENT}, got ${String(alignment).slice(0, 40)}`,
    );
  }
  return alignment;
}

interface Info extends Omit<GgufTensor, "offset"> {
  /** From the start of the data. */
  readonly offset: number;
}

function readInfo(cursor: Cursor, alignment: number): Info {
  const name = cursor.string("a tensor's name", MAX_NAME);
  const count = cursor.u32();
  if (count < 1 || count > MAX_DIMS)
    throw malformed(cursor, `${quoted(name)} with ${count} dimensions`);
  const sizes = Array.from({ length: count }, () =>
    cursor.count(`a size of ${quoted(name)}`, Number.MAX_SAFE_INTEGER),
  );
  const code = cursor.u32();
  const type = GGUF_TYPES[code];
  if (!type) {
    throw new AqError(
      "AQ_MODEL",
      `${quoted(name)} in ${cursor.file} is of ggml's type ${code}; F32, F16, Q4_0, Q4_1 and Q8_0 are read`,
    );
  }
  const elements = sizes.reduce((product, d) => product * d, 1);
  const [innermost = 0] = sizes;
  if (elements === 0 || innermost % type.block !== 0) {
    throw malformed(cursor, `${quoted(name)} as ${type.name} [${sizes.join(", ")}]`);
  }
  const bytes = (elements / type.block) * type.bytes;
  const offset = cursor.count(`the offset of ${quoted(name)}`, cursor.size);
  if (offset % alignment !== 0) {
    throw malformed(cursor, `${quoted(name)} at ${offset}, no multiple of ${alignment}`);
  }
  if (!(bytes <= cursor.size)) {
    throw malformed(cursor, `${quoted(name)} of ${bytes} bytes in a file of ${cursor.size}`);
  }
  return { name, shape: sizes.reverse(), type: type.name, bytes, offset };
}

/** Tensors lie inside the file, none over another, with nothing but short runs of zeros between them. */
function place(cursor: Cursor, infos: readonly Info[], alignment: number): Map<string, GgufTensor> {
  const start = Math.ceil(cursor.position / alignment) * alignment;
  const sorted = infos
    .map((info) => ({ ...info, offset: start + info.offset }))
    .sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = cursor.position;
  const tensors = new Map<string, GgufTensor>();
  for (const tensor of sorted) {
    const { name, offset, bytes } = tensor;
    if (tensors.has(name)) throw malformed(cursor, `the tensor ${quoted(name)} twice`);
    if (offset < end) throw malformed(cursor, `${quoted(name)} over the tensor before it`);
    if (offset + bytes > cursor.size) {
      throw new AqError(
        "AQ_FILE",
        `${quoted(name)} in ${cursor.file} ends at byte ${offset + bytes}, but the file has ${cursor.size}; it was cut, copy it again`,
      );
    }
    checkGap(cursor, end, offset, alignment);
    tensors.set(name, tensor);
    end = offset + bytes;
  }
  checkGap(cursor, end, cursor.size, alignment);
  return tensors;
}

function checkGap(cursor: Cursor, end: number, next: number, alignment: number): void {
  const length = next - end;
  if (length >= alignment) throw malformed(cursor, `${length} unused bytes at ${end}`);
  const stray = cursor.bytesAt(end, length).findIndex((byte) => byte !== 0);
  if (stray >= 0) throw malformed(cursor, `a byte that is not zero at ${end + stray}, in padding`);
}

/** A name of the file's as part of a sentence. */
function quoted(name: string): string {
  return JSON.stringify(name.slice(0, 80));
}

function malformed(cursor: Cursor, what: string): AqError {
  return new AqError("AQ_FORMAT", `${cursor.file} is malformed: it has ${what}`);
}
