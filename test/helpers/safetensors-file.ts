import * as fs from "node:fs";
import * as path from "node:path";

/** Bytes of a safetensors file with any header, right or wrong. */
export function rawSafetensors(
  header: string | object,
  data: Uint8Array = new Uint8Array(),
): Buffer {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header), "utf8");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

/** One-dimensional U8 tensors with the given bytes, one after the other. */
export function bytesSafetensors(tensors: Readonly<Record<string, readonly number[]>>): Buffer {
  const header: Record<string, unknown> = {};
  const data: number[] = [];
  for (const [name, bytes] of Object.entries(tensors)) {
    const begin = data.length;
    data.push(...bytes);
    header[name] = { dtype: "U8", shape: [bytes.length], data_offsets: [begin, data.length] };
  }
  return rawSafetensors(header, Uint8Array.from(data));
}

/** Writes files into a folder; objects become JSON. */
export function writeFiles(
  dir: string,
  files: Readonly<Record<string, Uint8Array | string | object>>,
): void {
  for (const [name, content] of Object.entries(files)) {
    const isRaw = typeof content === "string" || content instanceof Uint8Array;
    fs.writeFileSync(path.join(dir, name), isRaw ? content : JSON.stringify(content));
  }
}
