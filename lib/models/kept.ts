/** Which activations stay as they are where some linears do. */

import type { Model } from "./family.ts";

/**
 * Activations that kept linears alone read, and that therefore stay as they are. Where some of the
 * readers are kept and others are not, all of them read the quantized activation.
 */
export function keptActivations(model: Model, kept: ReadonlySet<string>): Set<string> {
  const read = new Set(model.linears.map(({ activation }) => activation));
  for (const { key, activation } of model.linears) if (!kept.has(key)) read.delete(activation);
  return read;
}
