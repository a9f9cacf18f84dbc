/**
 * The header of a safetensors file: parsing with every check, and writing.
 *
 *     u64 N, little-endian | N bytes of JSON, padded with spaces | the tensors' bytes, without gaps
 *     {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}
 *
 * Offsets count from the end of the header. What passes here can be read without further checks:
 * every tensor lies inside the file, and no byte belongs to two.
 */

import { AqError } from "../errors.ts";
import type { DType } from "../tensor/dtype.ts";
import {
  decodeUtf8,
  findDuplicateKey,
  isJsonObject,
  kindOf,
  parseJsonObject,
} from "../util/json.ts";

/** Element types that the format names; the engine computes with some of them. */
export type SafetensorsDType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F8_E8M0"
  | "C64";

/** Bytes of an element, by the name that the format uses. */
export const SAFETENSORS_BYTES: Readonly<Record<SafetensorsDType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  C64: 8,
};

const ENGINE_DTYPES: Readonly<Partial<Record<SafetensorsDType, DType>>> = {
  F64: "f64",
  F32: "f32",
  BF16: "bf16",
  F16: "f16",
  I32: "i32",
  I8: "i8",
  U8: "u8",
};

/** The engine's name of a stored dtype, or null when it has none. */
export function engineDType(dtype: SafetensorsDType): DType | null {
  return ENGINE_DTYPES[dtype] ?? null;
}

/** What a tensor is, before it has a place. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
}

/** A tensor and where its bytes lie. */
export interface TensorEntry extends TensorSpec {
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface SafetensorsHeader {
  /** In the order of their bytes. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
  /** First byte after the header. */
  readonly dataStart: number;
}

/** The format's own limit: a longer header is a mistake or an attack. */
export const MAX_HEADER_BYTES = 100_000_000;

/**
 * Bytes of a tensor.
 *
 * Throws: AQ_FORMAT naming `where` when a size is no natural number, or the product overflows.
 */
export function tensorBytes(
  dtype: SafetensorsDType,
  shape: readonly unknown[],
  where: string,
): number {
  let bytes: number = SAFETENSORS_BYTES[dtype];
  for (const size of shape) {
    if (!isNatural(size)) {
      throw malformed(where, "a shape of non-negative integers", JSON.stringify(shape));
    }
    bytes *= size;
    if (!Number.isSafeInteger(bytes)) {
      throw malformed(where, "a size that can be addressed", `shape ${JSON.stringify(shape)}`);
    }
  }
  return bytes;
}

/**
 * Parses and checks the JSON part of a header.
 *
 * Throws: AQ_FORMAT naming the file, the tensor, what was expected and what was found; AQ_FILE when the
 * file ends before its tensors do.
 */
export function parseHeader(
  header: Uint8Array,
  fileBytes: number,
  file: string,
): SafetensorsHeader {
  // Also refuses a byte-order mark, which the decoder would drop.
  if (header[0] !== 0x7b) {
    throw new AqError(
      "AQ_FORMAT",
      `The header of ${file} does not begin with "{"; this is not a safetensors file.`,
    );
  }
  const text = decodeUtf8(header, `The header of ${file}`);
  const json = parseJsonObject(text, `The header of ${file}`);
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) {
    throw new AqError("AQ_FORMAT", `The header of ${file} names "${duplicate}" twice.`);
  }
  const dataStart = 8 + header.byteLength;
  const entries: TensorEntry[] = [];
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(json)) {
    if (name === "__metadata__") metadata = parseMetadata(value, file);
    else entries.push(parseEntry(name, value, dataStart, file));
  }
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  checkCoverage(entries, dataStart, fileBytes, file);
  return { tensors: new Map(entries.map((e) => [e.name, e])), metadata, dataStart };
}

function parseEntry(name: string, value: unknown, dataStart: number, file: string): TensorEntry {
  const where = `Tensor "${name}" in ${file}`;
  if (!isJsonObject(value)) {
    throw malformed(where, "an object with dtype, shape and data_offsets", kindOf(value));
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(SAFETENSORS_BYTES, dtype)) {
    throw malformed(
      where,
      `one of the dtypes ${Object.keys(SAFETENSORS_BYTES).join(", ")}`,
      kindOf(dtype),
    );
  }
  if (!Array.isArray(shape)) throw malformed(where, "a shape, as an array", kindOf(shape));
  const known = dtype as SafetensorsDType;
  const bytes = tensorBytes(known, shape, where);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isNatural)) {
    throw malformed(
      where,
      "data_offsets of two non-negative integers",
      JSON.stringify(offsets) ?? "nothing",
    );
  }
  const [begin, end] = offsets as [number, number];
  if (end - begin !== bytes) {
    throw malformed(
      where,
      `${bytes} bytes for ${dtype} ${JSON.stringify(shape)}`,
      `data_offsets [${begin}, ${end}]`,
    );
  }
  return { name, dtype: known, shape: shape as number[], offset: dataStart + begin, bytes };
}

/** Every byte after the header belongs to exactly one tensor. */
function checkCoverage(
  entries: readonly TensorEntry[],
  dataStart: number,
  fileBytes: number,
  file: string,
): void {
  let end = dataStart;
  let previous: TensorEntry | undefined;
  for (const entry of entries) {
    const where = `Tensor "${entry.name}" in ${file}`;
    if (entry.offset + entry.bytes > fileBytes) {
      throw new AqError(
        "AQ_FILE",
        `${where} ends at byte ${entry.offset + entry.bytes}, but the file has ${fileBytes} bytes; it was cut, copy or download it again.`,
      );
    }
    if (entry.offset < end) {
      throw new AqError("AQ_FORMAT", `${where} overlaps "${previous?.name}".`);
    }
    if (entry.offset > end) {
      throw new AqError(
        "AQ_FORMAT",
        `${where} leaves ${entry.offset - end} unused bytes before it.`,
      );
    }
    end += entry.bytes;
    previous = entry;
  }
  if (end !== fileBytes) {
    throw new AqError(
      "AQ_FORMAT",
      `${file} has ${fileBytes} bytes, but its header describes ${end}.`,
    );
  }
}

function parseMetadata(value: unknown, file: string): Record<string, string> {
  const where = `The header of ${file}`;
  if (!isJsonObject(value)) {
    throw malformed(where, "an object as __metadata__", kindOf(value));
  }
  for (const [key, v] of Object.entries(value)) {
    if (typeof v !== "string") {
      throw malformed(where, `a string as __metadata__ "${key}"`, kindOf(v));
    }
  }
  return value as Record<string, string>;
}

/**
 * Lays tensors out one after the other and encodes the header, padded so that the data begin at a
 * multiple of 8. Returns the bytes before the data and the entries with their places.
 *
 * Throws: AQ_FORMAT for a name that occurs twice or a shape that is none.
 */
export function encodeHeader(
  specs: readonly TensorSpec[],
  metadata: Readonly<Record<string, string>>,
  file: string,
): { readonly bytes: Uint8Array; readonly entries: readonly TensorEntry[] } {
  const json: [string, unknown][] = [["__metadata__", metadata]];
  const names = new Set(["__metadata__"]);
  const laid: TensorEntry[] = [];
  let end = 0;
  for (const { name, dtype, shape } of specs) {
    if (names.has(name)) {
      throw new AqError("AQ_FORMAT", `Cannot write ${file}: tensor "${name}" occurs twice.`);
    }
    names.add(name);
    const bytes = tensorBytes(dtype, shape, `Tensor "${name}" of ${file}`);
    json.push([name, { dtype, shape, data_offsets: [end, end + bytes] }]);
    laid.push({ name, dtype, shape, offset: end, bytes });
    end += bytes;
  }
  // Built from pairs: names like "1" would be moved to the front of an object.
  const body = json.map(([k, v]) => `${JSON.stringify(k)}:${JSON.stringify(v)}`).join(",");
  const text = Buffer.from(`{${body}}`, "utf8");
  const padded = Math.ceil(text.length / 8) * 8;
  if (padded > MAX_HEADER_BYTES) {
    throw new AqError("AQ_FORMAT", `Cannot write ${file}: its header would exceed 100 MB.`);
  }
  const bytes = Buffer.alloc(8 + padded, 0x20);
  bytes.writeBigUInt64LE(BigInt(padded), 0);
  text.copy(bytes, 8);
  return { bytes, entries: laid.map((e) => ({ ...e, offset: e.offset + bytes.length })) };
}

function isNatural(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function malformed(where: string, expected: string, got: string): AqError {
  return new AqError("AQ_FORMAT", `${where} is malformed: expected ${expected}, got ${got}.`);
}
