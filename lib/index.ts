/** The public API of aq-native. */

import { quantizeToFormats } from "./run-formats.ts";
import type { QuantizeEvent, QuantizeOptions, QuantizeResult, RunHooks } from "./types.ts";

export { type DoctorCheck, type DoctorResult, doctor } from "./doctor.ts";
export { AqError, type AqErrorCode } from "./errors.ts";
export { type EstimateOptions, type EstimateResult, estimate } from "./estimate.ts";
export { evaluate } from "./evaluate.ts";
export { exportRun } from "./export-run.ts";
export type * from "./export-types.ts";
export {
  type GeneratedText,
  type GenerateOptions,
  type LoadedModel,
  type LoadOptions,
  load,
} from "./generate.ts";
export { inspect } from "./inspect.ts";
export { type ModelServer, type ServeOptions, serve } from "./serve.ts";
export type * from "./types.ts";
export {
  type VerifiedFolder,
  type VerifyEvent,
  type VerifyOptions,
  type VerifyResult,
  verify,
} from "./verify.ts";

/**
 * Quantizes a Hugging Face checkpoint and writes the result to `options.out`, in further formats below it
 * where they are asked for.
 *
 * Progress comes as events; aborting the signal stops the run at the next step with AQ_STOPPED.
 *
 * Throws: AqError, with one sentence that says what, where and what to do.
 */
export function quantize(
  options: QuantizeOptions,
  hooks: RunHooks<QuantizeEvent> = {},
): Promise<QuantizeResult> {
  return quantizeToFormats(options, hooks);
}
