/**
 * 4-bit floats: codes of e2m1, one scale byte for each group of columns (e4m3fn, or the exponent of a power
 * of two plus 127), and in NVFP4 one number for the whole matrix.
 */

import type { Float4Name } from "../autograd/float4.ts";

/** W[o, i] = value(codes[o, i]) * (scale[o, g] / global), g the group of column i. */
export interface PackedFloats {
  readonly kind: Float4Name;
  /** O and I. */
  readonly rows: number;
  readonly columns: number;
  /** Columns that share a scale. */
  readonly group: number;
  /** [O, I] */
  readonly codes: Uint8Array<ArrayBuffer>;
  /** [O, G], as they are stored. */
  readonly scaleBytes: Uint8Array<ArrayBuffer>;
  /** Of the whole matrix; null in MXFP4. */
  readonly global: GlobalScale | null;
  /** Of what the linear reads, fixed by calibration; null where its file has none. */
  readonly input: GlobalScale | null;
}

/** The scale of a whole matrix, as its file has it and in both directions. */
export interface GlobalScale {
  /** What is stored: g, or 1 / g where that is inverse. */
  readonly stored: number;
  readonly isInverse: boolean;
  /** g */
  readonly scale: number;
  /** 1 / g, what a product is multiplied by. */
  readonly factor: number;
}

/** The scales [O, G] that bytes stand for. */
export function scalesOf({
  kind,
  scaleBytes,
}: Pick<PackedFloats, "kind"> & { readonly scaleBytes: Uint8Array }): Float32Array<ArrayBuffer> {
  const values = VALUES[kind];
  const scales = new Float32Array(scaleBytes.length);
  for (let i = 0; i < scales.length; i++) scales[i] = values[scaleBytes[i] as number] as number;
  return scales;
}

/** What the bytes of scales stand for, but for those that stand for none. */
const VALUES: Readonly<Record<Float4Name, Float32Array>> = {
  // Without a sign: four bits of exponent, three of fraction. The last one would be no number.
  nvfp4: Float32Array.from({ length: 0x7f }, (_, byte) => {
    const [exponent, fraction] = [byte >>> 3, byte & 7];
    return exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
  }),
  mxfp4: Float32Array.from({ length: 0xff }, (_, byte) => 2 ** (byte - 127)),
};
