/** Curves of phases that train all blocks at once. */

import type { PolishReport } from "../types.ts";
import type { RunCurve } from "./types.ts";

/** The start, then each epoch. */
export function polishCurve({ divergence, heldBack }: PolishReport): RunCurve {
  return {
    title: `Polish: divergence from full precision, on ${heldBack} windows held back`,
    unit: "nats a token",
    first: 0,
    values: divergence,
  };
}
