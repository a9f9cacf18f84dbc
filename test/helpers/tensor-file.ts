/** Whole safetensors files in memory, read and written without the package's own code. */
import * as fs from "node:fs";
import { BF16, F16, halfFromBits } from "./half.ts";
import { rawSafetensors } from "./safetensors-file.ts";

export interface StoredTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Every tensor of a file, in the order of its header; `__metadata__` is left out. */
export function readTensors(file: string): Map<string, StoredTensor> {
  const bytes = fs.readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start).toString("utf8")) as object;
  const tensors = new Map<string, StoredTensor>();
  for (const [name, entry] of Object.entries(header) as [string, HeaderEntry][]) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets;
    const data = Uint8Array.from(bytes.subarray(start + begin, start + end));
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, bytes: data });
  }
  return tensors;
}

/** Writes the tensors in their order. */
export function writeTensors(file: string, tensors: ReadonlyMap<string, StoredTensor>): void {
  const header: Record<string, HeaderEntry> = {};
  let at = 0;
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
  }
  const data = Buffer.concat([...tensors.values()].map(({ bytes }) => bytes));
  fs.writeFileSync(file, rawSafetensors(header, data));
}

/** The tensor of a name; fails the test if the file has none. */
export function tensorNamed(
  tensors: ReadonlyMap<string, StoredTensor>,
  name: string,
): StoredTensor {
  const found = tensors.get(name);
  if (!found) throw new Error(`the file has no tensor ${name}`);
  return found;
}

/** The numbers that a tensor's bytes stand for. */
export function numbersOf({ dtype, bytes }: StoredTensor): Float64Array {
  const { buffer } = bytes;
  switch (dtype) {
    case "F32":
      return Float64Array.from(new Float32Array(buffer));
    case "F16":
      return Float64Array.from(new Uint16Array(buffer), (bits) => halfFromBits(bits, F16));
    case "BF16":
      return Float64Array.from(new Uint16Array(buffer), (bits) => halfFromBits(bits, BF16));
    case "I32":
      return Float64Array.from(new Int32Array(buffer));
    case "U8":
      return Float64Array.from(bytes);
    default:
      throw new Error(`no test reads ${dtype}`);
  }
}
