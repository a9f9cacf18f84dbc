/** What is done with the activations of a folder that is opened to be run. */

import type { AqConfig } from "../export/aq-config.ts";
import type { Model } from "../models/family.ts";
import type { PackedWeights } from "../packed/open.ts";
import { keptLinears, serverFloats, serverTokens } from "../packed/tokens.ts";
import { describedActivations, type EvalModel } from "./eval-model.ts";

/**
 * As its aq_config.json says, or, where it has none, as servers do by the description of its packed weights;
 * with `abits` bits where they are given.
 *
 * Throws: AQ_FORMAT, AQ_FILE.
 */
export function folderActivations(
  model: Model,
  config: AqConfig | null,
  packed: PackedWeights | null,
  abits?: number,
): EvalModel["activations"] {
  const tokens = packed?.tokens ?? null;
  const bits = abits ?? config?.scheme.abits ?? tokens?.bits ?? 16;
  if (config || !packed || !tokens || bits >= 16) return describedActivations(config, bits);
  const own = { bits, clips: [], kept: keptLinears(model, packed) };
  const floats = serverFloats(model, packed);
  return floats
    ? { ...own, globals: floats.globals, style: floats.scheme }
    : { ...own, hook: serverTokens(model, { ...tokens, bits }) };
}
