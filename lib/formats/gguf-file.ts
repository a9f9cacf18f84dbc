/**
 * A GGUF file, version 3: everything but the tensors' bytes is known before the first of them, so the
 * file is a stream.
 *
 *     "GGUF", u32 version, u64 tensors, u64 keys | keys | tensors' names, shapes, types, places | data
 *
 * Little-endian. A string is its length as u64 and UTF-8. Shapes are given innermost first. The data
 * and each tensor in it begin at a multiple of the alignment. Source: ggml/docs/gguf.md.
 */

import { AqError } from "../errors.ts";
import { UnfinishedFile } from "../util/unfinished-file.ts";

/** Numbers of ggml_type, and bytes of a block of elements. */
export const GGML_TYPES = {
  F32: { code: 0, elements: 1, bytes: 4 },
  F16: { code: 1, elements: 1, bytes: 2 },
  Q4_0: { code: 2, elements: 32, bytes: 18 },
  Q4_1: { code: 3, elements: 32, bytes: 20 },
  Q8_0: { code: 8, elements: 32, bytes: 34 },
} as const;

export type GgmlType = keyof typeof GGML_TYPES;

/** A value of the file's keys, with the type that readers expect. */
export type GgufValue =
  | { readonly type: "u32" | "f32"; readonly value: number }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly value: readonly string[] }
  | { readonly type: "i32s" | "f32s"; readonly value: readonly number[] };

/** A tensor of the file. */
export interface GgufTensor {
  readonly name: string;
  readonly type: GgmlType;
  /** Outermost first, as everywhere else here. */
  readonly shape: readonly number[];
  /** Its bytes, in pieces; asked for once, when its turn has come. */
  readonly pieces: () => Iterable<Uint8Array>;
}

const VERSION = 3;
const ALIGNMENT = 32;
const MAX_NAME_BYTES = 63;
const TYPE = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;

/** Bytes of a tensor's data. */
export function ggufBytes({ type, shape }: Pick<GgufTensor, "type" | "shape">): number {
  const { elements, bytes } = GGML_TYPES[type];
  return (shape.reduce((product, d) => product * d, 1) / elements) * bytes;
}

/** Writes the file. Throws: AQ_FILE, AQ_INTERNAL, what `onTensor` throws. */
export async function writeGguf(
  file: string,
  keys: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
  onTensor: (name: string) => Promise<void>,
): Promise<void> {
  const out = new UnfinishedFile(file);
  try {
    out.append(header(keys, tensors));
    for (const tensor of tensors) {
      await onTensor(tensor.name);
      writeTensor(out, tensor);
    }
    out.finish();
  } catch (error) {
    out.abort();
    throw error;
  }
}

function writeTensor(out: UnfinishedFile, tensor: GgufTensor): void {
  let written = 0;
  for (const piece of tensor.pieces()) {
    out.append(piece);
    written += piece.byteLength;
  }
  const expected = ggufBytes(tensor);
  if (written !== expected) {
    throw new AqError(
      "AQ_INTERNAL",
      `${out.file}: tensor "${tensor.name}" got ${written} bytes, expected ${expected}.`,
    );
  }
  out.append(new Uint8Array(paddingOf(written)));
}

function paddingOf(bytes: number): number {
  return (ALIGNMENT - (bytes % ALIGNMENT)) % ALIGNMENT;
}

function header(keys: ReadonlyMap<string, GgufValue>, tensors: readonly GgufTensor[]): Uint8Array {
  const out = new Bytes();
  out.raw(Buffer.from("GGUF", "latin1"));
  out.u32(VERSION);
  out.u64(tensors.length);
  out.u64(keys.size);
  for (const [key, value] of keys) {
    out.string(key);
    out.value(value);
  }
  let offset = 0;
  for (const tensor of tensors) {
    if (Buffer.byteLength(tensor.name) > MAX_NAME_BYTES) {
      throw new AqError("AQ_INTERNAL", `"${tensor.name}" is too long a name for GGUF.`);
    }
    out.string(tensor.name);
    out.u32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) out.u64(size);
    out.u32(GGML_TYPES[tensor.type].code);
    out.u64(offset);
    const bytes = ggufBytes(tensor);
    offset += bytes + paddingOf(bytes);
  }
  out.raw(new Uint8Array(paddingOf(out.length)));
  return out.all();
}

/** Little-endian numbers and strings, one after the other. */
class Bytes {
  readonly #parts: Uint8Array[] = [];
  length = 0;

  raw(part: Uint8Array): void {
    this.#parts.push(part);
    this.length += part.byteLength;
  }

  u32(value: number): void {
    this.#number(4, (b) => b.writeUInt32LE(value));
  }

  u64(value: number): void {
    this.#number(8, (b) => b.writeBigUInt64LE(BigInt(value)));
  }

  string(text: string): void {
    const bytes = Buffer.from(text, "utf8");
    this.u64(bytes.length);
    this.raw(bytes);
  }

  value(value: GgufValue): void {
    switch (value.type) {
      case "u32":
        this.u32(TYPE.u32);
        this.u32(value.value);
        break;
      case "f32":
        this.u32(TYPE.f32);
        this.raw(new Uint8Array(Float32Array.of(value.value).buffer));
        break;
      case "bool":
        this.u32(TYPE.bool);
        this.raw(Uint8Array.of(value.value ? 1 : 0));
        break;
      case "string":
        this.u32(TYPE.string);
        this.string(value.value);
        break;
      case "strings":
        this.#array(TYPE.string, value.value.length);
        for (const text of value.value) this.string(text);
        break;
      case "i32s":
        this.#array(TYPE.i32, value.value.length);
        this.raw(new Uint8Array(Int32Array.from(value.value).buffer));
        break;
      case "f32s":
        this.#array(TYPE.f32, value.value.length);
        this.raw(new Uint8Array(Float32Array.from(value.value).buffer));
        break;
      default:
        value satisfies never;
    }
  }

  all(): Uint8Array {
    return Buffer.concat(this.#parts);
  }

  #array(type: number, length: number): void {
    this.u32(TYPE.array);
    this.u32(type);
    this.u64(length);
  }

  #number(bytes: number, put: (buffer: Buffer) => void): void {
    const buffer = Buffer.alloc(bytes);
    put(buffer);
    this.raw(buffer);
  }
}
