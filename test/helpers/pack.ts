/**
 * Packed linears written as plainly as their layouts are described, one bit after the other: what the
 * readers must give back. Nothing here is fast, and nothing comes from the package.
 */
import { F16, halfToBits } from "./half.ts";
import type { StoredTensor } from "./tensor-file.ts";

/** W[o, i] = (codes[o, i] - zeros[o, g]) scales[o, g]; scales are float16 numbers. */
export interface PlainGrid {
  readonly bits: number;
  readonly rows: number;
  readonly columns: number;
  readonly group: number;
  readonly codes: readonly number[];
  readonly scales: readonly number[];
  readonly zeros: readonly number[];
}

export type Tensors = Readonly<Record<string, StoredTensor>>;

export function groupsOf({ columns, group }: PlainGrid): number {
  return Math.ceil(columns / group);
}

/** Value k in bits [k b, (k + 1) b), cut into words. */
export function bitStream(values: readonly number[], bits: number): number[] {
  const words = new Uint32Array(Math.ceil((values.length * bits) / 32));
  for (const [k, value] of values.entries()) {
    for (let b = 0; b < bits; b++) {
      const at = k * bits + b;
      const word = words[at >> 5] as number;
      words[at >> 5] = word | (((value >> b) & 1) << (at & 31));
    }
  }
  return [...words];
}

/** floor(32 / b) whole values in a word. */
export function paddedStream(values: readonly number[], bits: number): number[] {
  const perWord = Math.floor(32 / bits);
  return Array.from({ length: Math.ceil(values.length / perWord) }, (_, w) =>
    values
      .slice(w * perWord, (w + 1) * perWord)
      .reduce((word, v, k) => (word | (v << (k * bits))) >>> 0, 0),
  );
}

/** Columns in AWQ's order, eight to a word. */
export function awqWords(values: readonly number[]): number[] {
  const order = [0, 2, 4, 6, 1, 3, 5, 7];
  return Array.from({ length: values.length / 8 }, (_, c) =>
    order.reduce(
      (word, from, k) => (word | ((values[8 * c + from] as number) << (4 * k))) >>> 0,
      0,
    ),
  );
}

export function words(list: readonly number[], shape: readonly number[]): StoredTensor {
  return { dtype: "I32", shape, bytes: new Uint8Array(Uint32Array.from(list).buffer) };
}

export function halves(list: readonly number[], shape: readonly number[]): StoredTensor {
  const bits = Uint16Array.from(list, (x) => halfToBits(x, F16));
  return { dtype: "F16", shape, bytes: new Uint8Array(bits.buffer) };
}

function signedBytes(list: readonly number[], shape: readonly number[]): StoredTensor {
  return { dtype: "I8", shape, bytes: Uint8Array.from(list, (x) => x & 255) };
}

/** [rows][columns] -> [columns][rows]. */
function turned<T>(list: readonly T[], rows: number, columns: number): T[][] {
  return Array.from({ length: columns }, (_, c) =>
    Array.from({ length: rows }, (_, r) => list[r * columns + c] as T),
  );
}

function rowsOf<T>(list: readonly T[], rows: number): T[][] {
  const columns = list.length / rows;
  return Array.from({ length: rows }, (_, r) => list.slice(r * columns, (r + 1) * columns) as T[]);
}

/** Words of columns side by side: [words, columns]. */
function sideBySide(columns: readonly (readonly number[])[]): number[] {
  const [first = []] = columns;
  return first.flatMap((_, w) => columns.map((column) => column[w] as number));
}

export function gptq(grid: PlainGrid, version: 1 | 2, order?: readonly number[]): Tensors {
  const { bits, rows, columns, codes, scales, zeros, group } = grid;
  const groups = groupsOf(grid);
  const streams = rowsOf(codes, rows).map((row) => bitStream(row, bits));
  const less = version === 1 ? 1 : 0;
  const zeroRows = turned(zeros, rows, groups).map((row) =>
    bitStream(
      row.map((z) => z - less),
      bits,
    ),
  );
  const index = order ?? Array.from({ length: columns }, (_, i) => Math.floor(i / group));
  return {
    qweight: words(sideBySide(streams), [(columns * bits) / 32, rows]),
    qzeros: words(zeroRows.flat(), [groups, Math.ceil((rows * bits) / 32)]),
    scales: halves(turned(scales, rows, groups).flat(), [groups, rows]),
    g_idx: words(index, [columns]),
  };
}

export function awq(grid: PlainGrid): Tensors {
  const { rows, columns, codes, scales, zeros } = grid;
  const groups = groupsOf(grid);
  return {
    qweight: words(turned(codes, rows, columns).flatMap(awqWords), [columns, rows / 8]),
    qzeros: words(turned(zeros, rows, groups).flatMap(awqWords), [groups, rows / 8]),
    scales: halves(turned(scales, rows, groups).flat(), [groups, rows]),
  };
}

export function packQuantized(grid: PlainGrid, symmetric: boolean, stream = bitStream): Tensors {
  const { bits, rows, columns, codes, scales, zeros } = grid;
  const groups = groupsOf(grid);
  const streams = rowsOf(codes, rows).map((row) => stream(row, bits));
  const zeroStreams = turned(zeros, rows, groups).map((column) => stream(column, bits));
  const size = new Uint8Array(BigInt64Array.of(BigInt(rows), BigInt(columns)).buffer);
  return {
    weight_packed: words(streams.flat(), [rows, streams[0]?.length ?? 0]),
    weight_scale: halves(scales, [rows, groups]),
    weight_shape: { dtype: "I64", shape: [2], bytes: size },
    ...(symmetric
      ? {}
      : {
          weight_zero_point: words(sideBySide(zeroStreams), [zeroStreams[0]?.length ?? 0, groups]),
        }),
  };
}

export function intQuantized(grid: PlainGrid, symmetric: boolean): Tensors {
  const { bits, rows, columns, codes, scales, zeros } = grid;
  const groups = groupsOf(grid);
  const half = 2 ** (bits - 1);
  const signed = (list: readonly number[]): number[] => list.map((q) => q - half);
  return {
    weight: signedBytes(signed(codes), [rows, columns]),
    weight_scale: halves(scales, [rows, groups]),
    ...(symmetric ? {} : { weight_zero_point: signedBytes(signed(zeros), [rows, groups]) }),
  };
}

/** Our own; names are the weight's own and a part. */
export function own(grid: PlainGrid, wideZeros = false): Tensors {
  const { bits, rows, codes, scales, zeros } = grid;
  const groups = groupsOf(grid);
  const streams = (list: readonly number[]): Uint8Array =>
    Uint8Array.from(
      rowsOf(list, rows).flatMap((row) => {
        const bytes = new Uint8Array(Uint32Array.from(bitStream(row, bits)).buffer);
        return [...bytes.subarray(0, Math.ceil((row.length * bits) / 8))];
      }),
    );
  const packed = (list: readonly number[]): StoredTensor => {
    const bytes = streams(list);
    return { dtype: "U8", shape: [rows, bytes.length / rows], bytes };
  };
  return {
    "weight.codes": packed(codes),
    "weight.scale": halves(scales, [rows, groups]),
    "weight.zero": wideZeros
      ? {
          dtype: "F32",
          shape: [rows, groups],
          bytes: new Uint8Array(Float32Array.from(zeros).buffer),
        }
      : packed(zeros),
  };
}

/** Every value that the grid stands for, as float32 has it. */
export function valuesOf(grid: PlainGrid, order?: readonly number[]): number[] {
  const groups = groupsOf(grid);
  return grid.codes.map((q, at) => {
    const [o, i] = [Math.floor(at / grid.columns), at % grid.columns];
    const g = o * groups + (order?.[i] ?? Math.floor(i / grid.group));
    return Math.fround((q - (grid.zeros[g] as number)) * (grid.scales[g] as number));
  });
}

// ---------------------------------------------------------------- descriptions

export function gptqConfig(grid: PlainGrid, version: 1 | 2, more: object = {}): object {
  const format = version === 2 ? "gptq_v2" : "gptq";
  const group = grid.group === grid.columns ? -1 : grid.group;
  return {
    quant_method: "gptq",
    bits: grid.bits,
    group_size: group,
    desc_act: false,
    sym: false,
    checkpoint_format: format,
    ...more,
  };
}

export function awqConfig({ group }: PlainGrid, more: object = {}): object {
  return {
    quant_method: "awq",
    version: "gemm",
    bits: 4,
    group_size: group,
    zero_point: true,
    ...more,
  };
}

export function compressedConfig(
  grid: PlainGrid,
  format: "pack-quantized" | "int-quantized",
  symmetric: boolean,
  more: object = {},
): object {
  const isChannel = grid.group === grid.columns;
  return {
    quant_method: "compressed-tensors",
    format,
    quantization_status: "compressed",
    kv_cache_scheme: null,
    ignore: ["lm_head"],
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights: {
          num_bits: grid.bits,
          type: "int",
          symmetric,
          strategy: isChannel ? "channel" : "group",
          group_size: isChannel ? null : grid.group,
          dynamic: false,
        },
        input_activations: null,
        output_activations: null,
      },
    },
    ...more,
  };
}

export function ownConfig({ bits, group, columns }: PlainGrid): object {
  const size = group === columns ? 0 : group;
  return { quant_method: "aq", format: 1, bits, group_size: size, symmetric: false };
}
