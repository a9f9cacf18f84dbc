/** The activation quantizers of a block. */

import { type ActivationHook, passThrough, type TokenState } from "./activations.ts";
import { quantizerOf } from "./quantizers.ts";
import { type QuantScheme, quantizesTokens } from "./scheme.ts";

/** The activation quantizers of a scheme. */
export function tokenQuantizers(scheme: QuantScheme, state: TokenState): ActivationHook {
  if (!quantizesTokens(scheme)) return passThrough;
  const { plain } = state;
  const quantizers = quantizerOf(scheme).tokens(scheme, state);
  return plain ? allBut(plain, quantizers) : quantizers;
}

/** The same, which leaves some activations as they are. */
export function allBut(plain: ReadonlySet<string>, hook: ActivationHook): ActivationHook {
  if (plain.size === 0) return hook;
  return {
    apply: (graph, name, x, group) => (plain.has(name) ? x : hook.apply(graph, name, x, group)),
  };
}
