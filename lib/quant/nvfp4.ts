/** NVFP4: groups of 16 with scales in e4m3fn, and a global scale for each matrix and each activation. */

import { Float4Quantizer } from "./float4.ts";

const BIAS = 7;
const MANTISSA_BITS = 3;
const LEAST_EXPONENT = 1 - BIAS;

export const nvfp4: Float4Quantizer = new Float4Quantizer({
  name: "nvfp4",
  hasGlobal: true,

  scaleByte(value) {
    const isNormal = value >= 2 ** LEAST_EXPONENT;
    const exponent = isNormal ? Math.floor(Math.log2(value)) : LEAST_EXPONENT;
    const mantissa = value / 2 ** (exponent - MANTISSA_BITS);
    return isNormal ? ((exponent + BIAS) << MANTISSA_BITS) + mantissa - 8 : mantissa;
  },

  scaleValue(byte) {
    if ((byte & 0x7f) === 0x7f) return Number.NaN;
    const [exponent, mantissa] = [(byte >> MANTISSA_BITS) & 15, byte & 7];
    const isNormal = exponent > 0;
    const unit = 2 ** ((isNormal ? exponent - BIAS : LEAST_EXPONENT) - MANTISSA_BITS);
    const magnitude = (isNormal ? mantissa + 8 : mantissa) * unit;
    return byte & 0x80 ? -magnitude : magnitude;
  },
});
