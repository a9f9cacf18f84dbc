/** Readers of the packed layouts, bit by bit as docs/formats.md describes them. */
import { expect } from "vitest";
import type { SyntheticLinear } from "./synthetic-run.ts";
import { type StoredTensor, tensorNamed } from "./tensor-file.ts";
import { awqValue, byteStreamValue, streamValue, wordsOf } from "./unpack.ts";

type Tensors = ReadonlyMap<string, StoredTensor>;

/** What a layout holds at a place: code of [o, i], zero point and bits of the scale of [o, g]. */
export interface Reader {
  readonly code: (o: number, i: number) => number;
  readonly zero: (o: number, g: number) => number;
  readonly scale: (o: number, g: number) => number;
}

export function expectSame(linear: SyntheticLinear, { code, zero, scale }: Reader): void {
  const { rows, columns, groups, codes, zeros, scales, name } = linear;
  const got = {
    codes: new Uint8Array(codes.length),
    zeros: [] as number[],
    scales: [] as number[],
  };
  for (let o = 0; o < rows; o++) {
    for (let i = 0; i < columns; i++) got.codes[o * columns + i] = code(o, i);
    for (let g = 0; g < groups; g++) {
      got.zeros.push(zero(o, g));
      got.scales.push(scale(o, g));
    }
  }
  expect(Buffer.from(got.codes).equals(codes), name).toBe(true);
  expect(got.zeros, name).toEqual(zeros);
  expect(got.scales, name).toEqual([...scales]);
}

const part = (tensors: Tensors, name: string): Uint32Array =>
  wordsOf(tensorNamed(tensors, name).bytes);
const half = (tensors: Tensors, name: string): Uint16Array =>
  new Uint16Array(Uint8Array.from(tensorNamed(tensors, name).bytes).buffer);

export function gptqReader(
  tensors: Tensors,
  { name, rows, groups }: SyntheticLinear,
  bits: number,
  less: 0 | 1,
): Reader {
  const prefix = name.replace(/\.weight$/, "");
  expect(tensors.has(name)).toBe(false);
  const [codes, zeros] = ["qweight", "qzeros"].map((end) => part(tensors, `${prefix}.${end}`));
  const scales = half(tensors, `${prefix}.scales`);
  const perGroup = (zeros as Uint32Array).length / groups;
  return {
    code: (o, i) => streamValue(codes as Uint32Array, o, rows, i, bits),
    zero: (o, g) => less + streamValue(zeros as Uint32Array, g * perGroup, 1, o, bits),
    scale: (o, g) => scales[g * rows + o] as number,
  };
}

export function awqReader(tensors: Tensors, { name, rows }: SyntheticLinear): Reader {
  const prefix = name.replace(/\.weight$/, "");
  const [codes, zeros] = ["qweight", "qzeros"].map((end) => part(tensors, `${prefix}.${end}`));
  const scales = half(tensors, `${prefix}.scales`);
  return {
    code: (o, i) => awqValue(codes as Uint32Array, i, rows / 8, o),
    zero: (o, g) => awqValue(zeros as Uint32Array, g, rows / 8, o),
    scale: (o, g) => scales[g * rows + o] as number,
  };
}

export function compressedReader(
  tensors: Tensors,
  { name, columns, groups }: SyntheticLinear,
  bits: number,
): Reader {
  const prefix = name.replace(/\.weight$/, "");
  const codes = part(tensors, `${prefix}.weight_packed`);
  const zeroName = `${prefix}.weight_zero_point`;
  const zeros = tensors.has(zeroName) ? part(tensors, zeroName) : null;
  const scales = half(tensors, `${prefix}.weight_scale`);
  const perRow = Math.ceil((columns * bits) / 32);
  return {
    code: (o, i) => streamValue(codes, o * perRow, 1, i, bits),
    zero: (o, g) => (zeros ? streamValue(zeros, g, groups, o, bits) : 2 ** (bits - 1)),
    scale: (o, g) => scales[o * groups + g] as number,
  };
}

export function ownReader(
  tensors: Tensors,
  { name, columns, groups }: SyntheticLinear,
  bits: number,
): Reader {
  const codes = tensorNamed(tensors, `${name}.codes`).bytes;
  const zero = tensorNamed(tensors, `${name}.zero`);
  const scales = half(tensors, `${name}.scale`);
  const bytes = (n: number): number => Math.ceil((n * bits) / 8);
  const wide = zero.dtype === "F32" ? new Float32Array(Uint8Array.from(zero.bytes).buffer) : null;
  return {
    code: (o, i) => byteStreamValue(codes, o * bytes(columns), i, bits),
    zero: (o, g) =>
      wide
        ? (wide[o * groups + g] as number)
        : byteStreamValue(zero.bytes, o * bytes(groups), g, bits),
    scale: (o, g) => scales[o * groups + g] as number,
  };
}
