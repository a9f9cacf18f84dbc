/** Every quantizer, by the name that a scheme has for its numbers. */

import type { Float4Name } from "../autograd/float4.ts";
import type { Float4Quantizer } from "./float4.ts";
import { integers } from "./integers.ts";
import { mxfp4 } from "./mxfp4.ts";
import { nvfp4 } from "./nvfp4.ts";
import type { Quantizer } from "./quantizer.ts";
import type { QuantScheme } from "./scheme.ts";

const FLOATS: Readonly<Record<Float4Name, Float4Quantizer>> = { nvfp4, mxfp4 };

export function quantizerOf({ numbers }: Pick<QuantScheme, "numbers">): Quantizer {
  return numbers ? FLOATS[numbers] : integers;
}

/** Bytes of scales that the format holds exactly: e4m3fn, or an exponent plus 127. */
export function scaleBytes(values: Float32Array, format: Float4Name): Uint8Array<ArrayBuffer> {
  const { spec } = FLOATS[format];
  return Uint8Array.from(values, (value) => spec.scaleByte(value));
}

/** The scales that bytes stand for; NaN where a byte stands for none. */
export function scaleValues(bytes: Uint8Array, format: Float4Name): Float32Array<ArrayBuffer> {
  const { spec } = FLOATS[format];
  const table = Float32Array.from({ length: 256 }, (_, byte) => spec.scaleValue(byte));
  return Float32Array.from(bytes, (byte) => table[byte] as number);
}
