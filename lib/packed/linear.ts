/** A linear's weight as packed formats hold it: codes, and what a code stands for. */

import { FLOAT4_FORMATS } from "../autograd/float4.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type PackedFloats, scalesOf } from "./float4.ts";
import type { FloatName } from "./half.ts";

/** Whoever multiplies by it may use the codes as they are; `dequantize` gives the matrix. */
export type PackedLinear = PackedIntegers | PackedFloats;

/** Whole numbers: W[o, i] = (codes[o, i] - zero[o, g]) * scale[o, g] with g the group of column i. */
export interface PackedIntegers {
  readonly kind: "integers";
  /** Bits of a code. */
  readonly bits: number;
  /** O and I. */
  readonly rows: number;
  readonly columns: number;
  /** Columns that share a scale; the last group may be shorter. At most I. */
  readonly group: number;
  /** [O, I], each below 2^bits. */
  readonly codes: Uint8Array<ArrayBuffer>;
  /** [O, G]. */
  readonly scale: Float32Array<ArrayBuffer>;
  /** [O, G], whole numbers. */
  readonly zero: Float32Array<ArrayBuffer>;
  /** How the file stores the scales. */
  readonly scaleType: FloatName;
  /** Group of each column where groups are no runs of columns ("act order"), else null. */
  readonly groupOf: Int32Array<ArrayBuffer> | null;
}

/** Groups of a row of `columns` weights. */
export function groupCount(columns: number, group: number): number {
  return Math.ceil(columns / group);
}

/** The matrix that the codes stand for, f32 [O, I]; the caller owns it. */
export function dequantize(packed: PackedLinear, device = "cpu"): Tensor {
  if (packed.kind !== "integers") return dequantizeFloats(packed, device);
  const { rows, columns, group, codes, scale, zero, groupOf } = packed;
  if (groupOf) return Tensor.from(spread(packed, groupOf), [rows, columns], "f32", device);
  const grid = [rows, groupCount(columns, group)];
  return scope(() => {
    const given = [
      Tensor.from(codes, [rows, columns], "u8", device),
      Tensor.from(scale, grid, "f32", device),
      Tensor.from(zero, grid, "f32", device),
    ];
    const w = invokeOne("dequantize", given, { group: group < columns ? group : 0 });
    return invokeOne("cast", [w], { dtype: dtypeCode("f32") });
  });
}

function dequantizeFloats(packed: PackedFloats, device: string): Tensor {
  const { kind, rows, columns, group, codes, global } = packed;
  return scope(() => {
    const given = [
      Tensor.from(codes, [rows, columns], "u8", device),
      Tensor.from(scalesOf(packed), [rows, columns / group], "f32", device),
      global ? Tensor.from(Float32Array.of(global.scale), [1], "f32", device) : undefined,
    ];
    return invokeOne("fp4_values", given, { format: FLOAT4_FORMATS[kind] });
  });
}

function spread(packed: PackedIntegers, groupOf: Int32Array): Float32Array<ArrayBuffer> {
  const { rows, columns, codes, scale, zero } = packed;
  const groups = scale.length / rows;
  const w = new Float32Array(rows * columns);
  for (let o = 0; o < rows; o++) {
    for (let i = 0; i < columns; i++) {
      const g = o * groups + (groupOf[i] as number);
      const steps = (codes[o * columns + i] as number) - (zero[g] as number);
      w[o * columns + i] = steps * (scale[g] as number);
    }
  }
  return w;
}
