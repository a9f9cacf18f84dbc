/**
 * A matrix [M, K] quantized to 4-bit floats, made when the first product wants it: numbers of at most
 * four bits times the scales of their groups, which stand for themselves times one factor. Both halves
 * are exact in bf16, so a product of two such matrices is rounded only where it is summed.
 */

import { dtypeCode } from "../tensor/dtype.ts";
import { invoke } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** `format` of the ops: groups of 16 with e4m3 scales, or of 32 with powers of two. */
export const FLOAT4_FORMATS = { nvfp4: 0, mxfp4: 1 } as const;
export type Float4Name = keyof typeof FLOAT4_FORMATS;

/** What is quantized: x, or r x c, with what was learned for it. */
export interface Float4Source {
  readonly x: Tensor;
  readonly format: Float4Name;
  /** g [1] of NVFP4; not owned. */
  readonly global?: Tensor | undefined;
  readonly clip?: Tensor | undefined;
  readonly offset?: Tensor | undefined;
  readonly rows?: Tensor | undefined;
  readonly columns?: Tensor | undefined;
}

/** What the op gives. */
export interface Float4Made {
  /** [M, G] */
  readonly scale: Tensor;
  /** [1]: 1 / g */
  readonly factor: Tensor;
  /** Values times scales [M, K]: bf16 where products are in 16 bits, else of x's type. */
  readonly values: Tensor;
}

export class Float4 {
  /** Absent where the op that made the matrix quantized it: the matrix itself never was. */
  readonly source: Float4Source | undefined;
  #made: Float4Made | undefined;

  constructor(from: Float4Source | Float4Made) {
    if ("values" in from) this.#made = from;
    else this.source = from;
  }

  get made(): Float4Made {
    this.#made ??= this.#make();
    return this.#made;
  }

  #make(): Float4Made {
    if (!this.source) throw new TypeError("4-bit floats were used after their end");
    const { x, format, global, clip, offset, rows, columns } = this.source;
    const isShort = x.dtype !== "f64" && precisionOf(x.device) !== "f32";
    const own = x.dtype === "f64" ? "f64" : "f32";
    const [scale, factor, values] = invoke(
      "fp4_operand",
      [x, global, clip, offset, rows, columns],
      { format: FLOAT4_FORMATS[format], dtype: dtypeCode(isShort ? "bf16" : own) },
    );
    if (!scale || !factor || !values) throw new TypeError("fp4_operand gives three outputs");
    return { scale, factor, values };
  }

  dispose(): void {
    for (const held of Object.values(this.#made ?? {})) (held as Tensor).dispose();
    this.#made = undefined;
  }
}
