/** How weights and activations are quantized: the settings, checked. */

import type { Float4Name } from "../autograd/float4.ts";
import { AqError } from "../errors.ts";

/** Whether a device may multiply weights and tokens as whole numbers that fit 8 bits with their sign. */
export function multipliesCodes({ wbits, abits, groupSize, grids, numbers }: QuantScheme): boolean {
  return !numbers && wbits <= 7 && abits <= 7 && groupSize === 0 && grids !== "published";
}

/** Smallest scale of a weight group: 2^-14, the smallest normal float16. */
export const WEIGHT_FLOOR: number = 2 ** -14;
/** Smallest scale of a token. */
export const TOKEN_FLOOR = 1e-6;
/** Where clipping logits start: sigmoid(4) = 0.982. Source: OmniQuant, AffineQuant. */
export const CLIP_START = 4;

/** Smallest scale of weights and tokens in the published style. Source: OmniQuant. */
export const PUBLISHED_FLOOR = 1e-5;

/** Where grids follow the published code instead of our rules; see docs/method.md. */
export interface GridStyle {
  /** Zero need not lie in a grid's range, and its zero point passes no gradient on. */
  readonly grids?: "published";
  /** One scale for all heads of a token of q, k and v, instead of one each. */
  readonly heads?: "together";
}

/** Columns of a 4-bit float's group. */
export const FLOAT4_GROUPS: Readonly<Record<Float4Name, number>> = { nvfp4: 16, mxfp4: 32 };

/** Settings of a quantized model. */
export interface QuantScheme extends GridStyle {
  /** Floats of four bits instead of whole numbers; then the rest is what `float4Scheme` says. */
  readonly numbers?: Float4Name;
  /** Bits of a weight, 2..8. */
  readonly wbits: number;
  /** Bits of an activation and of q, k, v; 16 = not quantized. */
  readonly abits: number;
  /** Weights along the input that share a scale; 0 = a whole output channel. */
  readonly groupSize: number;
  readonly symmetric: boolean;
}

/** The scheme of 4-bit floats, of weights and activations or of weights alone. */
export function float4Scheme(numbers: Float4Name, abits: 4 | 16): QuantScheme {
  return { wbits: 4, abits, groupSize: FLOAT4_GROUPS[numbers], symmetric: true, numbers };
}

/** Is there a global scale for each matrix of weights and each activation? */
export function hasGlobalScales({ numbers }: QuantScheme): boolean {
  return numbers === "nvfp4";
}

/** May clipping of activations be learned? Servers have no place for it beside 4-bit floats. */
export function clipsTokens(scheme: QuantScheme): boolean {
  return quantizesTokens(scheme) && !scheme.numbers;
}

/** Groups of a row of `columns` weights. */
export function groupsPerRow(columns: number, groupSize: number): number {
  return groupSize ? Math.ceil(columns / groupSize) : 1;
}

/** Are activations quantized? */
export function quantizesTokens(scheme: QuantScheme): boolean {
  return scheme.abits < 16;
}

/** Are q, k and v quantized, each head of a token by itself? 4-bit floats leave them as they are. */
export function quantizesHeads(scheme: QuantScheme): boolean {
  return quantizesTokens(scheme) && !scheme.numbers;
}

/** Smallest scale of a weight group and of a token. */
export function scaleFloors({ grids }: GridStyle): { weight: number; token: number } {
  return grids === "published"
    ? { weight: PUBLISHED_FLOOR, token: PUBLISHED_FLOOR }
    : { weight: WEIGHT_FLOOR, token: TOKEN_FLOOR };
}

/** Checks the settings. Throws: AQ_ARG with the field, what it may be and what it was. */
export function checkScheme(scheme: QuantScheme): QuantScheme {
  const { wbits, abits, groupSize, numbers } = scheme;
  if (numbers !== undefined) return checkFloats(scheme, numbers);
  if (!Number.isInteger(wbits) || wbits < 2 || wbits > 8) {
    throw new AqError("AQ_ARG", `wbits must be a whole number from 2 to 8, got ${wbits}`);
  }
  if (!Number.isInteger(abits) || ((abits < 2 || abits > 8) && abits !== 16)) {
    throw new AqError("AQ_ARG", `abits must be from 2 to 8, or 16 for none, got ${abits}`);
  }
  if (!Number.isInteger(groupSize) || groupSize < 0) {
    throw new AqError(
      "AQ_ARG",
      `groupSize must be a whole number above 0, or absent for whole channels, got ${groupSize}`,
    );
  }
  return scheme;
}

function checkFloats(scheme: QuantScheme, numbers: string): QuantScheme {
  if (numbers !== "nvfp4" && numbers !== "mxfp4") {
    throw new AqError("AQ_ARG", `numbers must be nvfp4 or mxfp4, got ${JSON.stringify(numbers)}`);
  }
  const { wbits, abits, groupSize, symmetric } = scheme;
  const own = float4Scheme(numbers, abits === 16 ? 16 : 4);
  const fits = wbits === 4 && abits === own.abits && groupSize === own.groupSize && symmetric;
  if (fits) return scheme;
  throw new AqError(
    "AQ_ARG",
    `${numbers} is 4 bits in groups of ${own.groupSize}, symmetric, with activations in 4 or 16 bits; got wbits ${wbits}, abits ${abits}, groupSize ${groupSize}, symmetric ${symmetric}`,
  );
}

/** "W4A4", "W3A16 g128", "NVFP4A16". */
export function schemeName(scheme: QuantScheme): string {
  const { wbits, abits, groupSize, symmetric, numbers } = scheme;
  if (numbers) return `${numbers.toUpperCase()}${abits < 16 ? "" : `A${abits}`}`;
  return `W${wbits}A${abits}${groupSize ? ` g${groupSize}` : ""}${symmetric ? " sym" : ""}`;
}
