/** MXFP4: groups of 32 with powers of two as scales (e8m0), and nothing above them. */

import { Float4Quantizer } from "./float4.ts";

const BIAS = 127;
const NOT_A_NUMBER = 255;

export const mxfp4: Float4Quantizer = new Float4Quantizer({
  name: "mxfp4",
  hasGlobal: false,
  scaleByte: (value) => Math.round(Math.log2(value)) + BIAS,
  scaleValue: (byte) => (byte === NOT_A_NUMBER ? Number.NaN : 2 ** (byte - BIAS)),
});
