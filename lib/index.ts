/** The public API of aq-native. */

import { runQuantize } from "./calibration/run.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult, RunHooks } from "./types.ts";

export { type DoctorCheck, type DoctorResult, doctor } from "./doctor.ts";
export { AqError, type AqErrorCode } from "./errors.ts";
export { type EstimateOptions, type EstimateResult, estimate } from "./estimate.ts";
export { evaluate } from "./evaluate.ts";
export { inspect } from "./inspect.ts";
export type * from "./types.ts";

/**
 * Quantizes a Hugging Face checkpoint and writes the result to `options.out`.
 *
 * Progress comes as events; aborting the signal stops the run at the next step with AQ_STOPPED.
 *
 * Throws: AqError, with one sentence that says what, where and what to do.
 */
export function quantize(
  options: QuantizeOptions,
  hooks: RunHooks<QuantizeEvent> = {},
): Promise<QuantizeResult> {
  return runQuantize(options, hooks);
}
