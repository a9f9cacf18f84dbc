/** GGUF files written as plainly as the format is described, right ones and wrong ones. */

export type Pair = readonly [key: string, type: number, value: unknown];

export interface PlainTensor {
  readonly name: string;
  /** The innermost size first, as the file has them. */
  readonly sizes: readonly number[];
  readonly type: number;
  readonly data: Uint8Array;
}

function u32(x: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(x);
  return bytes;
}

function u64(x: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(x));
  return bytes;
}

function text(x: string): Buffer {
  const bytes = Buffer.from(x, "utf8");
  return Buffer.concat([u64(bytes.length), bytes]);
}

function valueBytes(type: number, value: unknown): Buffer {
  const bytes = Buffer.alloc(8);
  const wide: bigint = typeof value === "bigint" ? value : 0n;
  const x = Number(typeof value === "number" || typeof value === "boolean" ? value : 0);
  switch (type) {
    case 0:
    case 7:
      return bytes.subarray(0, bytes.writeUInt8(x));
    case 1:
      return bytes.subarray(0, bytes.writeInt8(x));
    case 2:
      return bytes.subarray(0, bytes.writeUInt16LE(x));
    case 3:
      return bytes.subarray(0, bytes.writeInt16LE(x));
    case 4:
      return bytes.subarray(0, bytes.writeUInt32LE(x));
    case 5:
      return bytes.subarray(0, bytes.writeInt32LE(x));
    case 6:
      return bytes.subarray(0, bytes.writeFloatLE(x));
    case 8:
      return text(String(value));
    case 9: {
      const [of, list] = value as readonly [number, readonly unknown[]];
      return Buffer.concat([u32(of), u64(list.length), ...list.map((v) => valueBytes(of, v))]);
    }
    case 10:
      return bytes.subarray(0, bytes.writeBigUInt64LE(wide));
    case 11:
      return bytes.subarray(0, bytes.writeBigInt64LE(wide));
    default:
      return bytes.subarray(0, bytes.writeDoubleLE(x));
  }
}

/** A whole file; `alignment` is not written into it. */
export function ggufBytes(
  pairs: readonly Pair[],
  tensors: readonly PlainTensor[],
  alignment = 32,
): Buffer {
  const padded = (length: number): number => Math.ceil(length / alignment) * alignment;
  let offset = 0;
  const infos = tensors.map(({ name, sizes, type, data }) => {
    const info = [text(name), u32(sizes.length), ...sizes.map(u64), u32(type), u64(offset)];
    offset += padded(data.length);
    return Buffer.concat(info);
  });
  const head = Buffer.concat([
    Buffer.from("GGUF"),
    u32(3),
    u64(tensors.length),
    u64(pairs.length),
    ...pairs.map(([key, type, value]) =>
      Buffer.concat([text(key), u32(type), valueBytes(type, value)]),
    ),
    ...infos,
  ]);
  const body = tensors.map(({ data }) =>
    Buffer.concat([data, Buffer.alloc(padded(data.length) - data.length)]),
  );
  return Buffer.concat([head, Buffer.alloc(padded(head.length) - head.length), ...body]);
}
