/** What tensors cost that the source does not have. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { isRunTime } from "../export/aq-config.ts";
import type { Model, TensorSpec } from "../models/family.ts";
import type { BitsExtras } from "./bits.ts";
import type { OtherBits } from "./types.ts";

/**
 * Matrices of the run time count as bits of the weights, biases beside them. `written` is the model
 * with all its tensors; those that the source lacks are stored like the first of its block.
 */
export function addedBits(
  source: Checkpoint,
  written: Model,
): Pick<BitsExtras, "runtime" | "added"> {
  const rows = { runtime: new Map<string, OtherBits>(), added: new Map<string, OtherBits>() };
  for (let i = 0; i < written.shape.blocks; i++) {
    const specs = written.blockTensors(i);
    const like = source.info((specs[0] as TensorSpec).name);
    const bits = (8 * like.bytes) / like.shape.reduce((product, d) => product * d, 1);
    for (const { key, name, shape } of specs) {
      if (source.has(name)) continue;
      const [map, row] = isRunTime(key)
        ? ([rows.runtime, key] as const)
        : ([rows.added, "biases, not in the source"] as const);
      const size = shape.reduce((product, d) => product * d, 1);
      const known = map.get(row) ?? { name: row, parameters: 0, bits: 0 };
      map.set(row, {
        name: row,
        parameters: known.parameters + size,
        bits: known.bits + size * bits,
      });
    }
  }
  return { runtime: [...rows.runtime.values()], added: [...rows.added.values()] };
}
