/** Which ggml type holds the codes of a grid as they are. */

import type { QuantScheme } from "../quant/scheme.ts";
import type { GgmlType } from "./gguf-file.ts";
import { isMidpoint } from "./setting.ts";

/** Numbers of llama_ftype, which say what most of a file's tensors are. */
export const FILE_TYPES: Readonly<Record<GgmlType, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 7,
};

/**
 * The narrowest type that holds every code of the scheme, or null where none does. Differences q - z
 * from -8 to 7 fit Q4_0 and those of a byte Q8_0, both exactly; Q4_1 takes any zero point, and rounds
 * its product with the scale.
 */
export function blockType(scheme: QuantScheme): "Q4_0" | "Q4_1" | "Q8_0" | null {
  const { wbits } = scheme;
  const top = 2 ** wbits - 1;
  const isPublished = scheme.grids === "published";
  if (isMidpoint(scheme)) return wbits <= 4 ? "Q4_0" : "Q8_0";
  // A published symmetric grid has its zero point one below the middle; an asymmetric one anywhere.
  const middle = 2 ** (wbits - 1) - 1;
  const [low, high] = scheme.symmetric ? [-middle, top - middle] : [-top, top];
  const isBounded = scheme.symmetric || !isPublished;
  if (isBounded && low >= -8 && high <= 7) return "Q4_0";
  if (wbits <= 4) return "Q4_1";
  return isBounded && low >= -128 && high <= 127 ? "Q8_0" : null;
}
