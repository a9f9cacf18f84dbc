/** In what type a device multiplies the matrices of f32 tensors. */

import { native } from "../native/load.ts";
import type { PrecisionName } from "../types.ts";
import { guarded } from "./tensor.ts";

const chosen = new Map<string, PrecisionName>();

/** Sets it, for all that runs on the device in this environment. Throws: AQ_ARG where it cannot. */
export function setPrecision(device: string, precision: PrecisionName): void {
  guarded(() => native().setOption(device, "precision", precision));
  chosen.set(device, precision);
}

/** The type that operands are rounded to: f32 unless it was set. */
export function precisionOf(device: string): PrecisionName {
  return chosen.get(device) ?? "f32";
}
