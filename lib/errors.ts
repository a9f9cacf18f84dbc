/**
 * Codes of everything that can go wrong. The first ten come from the engine (native/abi/backend.h),
 * the rest from this side: AQ_FILE a file is missing, truncated or unreadable; AQ_FORMAT its content
 * is malformed; AQ_MODEL a checkpoint that is well formed but not supported; AQ_STOPPED a run that
 * was asked to stop; AQ_ADDON the native addon could not be loaded.
 */
export type AqErrorCode =
  | "AQ_SHAPE"
  | "AQ_DTYPE"
  | "AQ_ARG"
  | "AQ_DEVICE"
  | "AQ_OOM"
  | "AQ_UNSUPPORTED"
  | "AQ_NUMERIC"
  | "AQ_CUDA"
  | "AQ_DISPOSED"
  | "AQ_INTERNAL"
  | "AQ_FILE"
  | "AQ_FORMAT"
  | "AQ_MODEL"
  | "AQ_STOPPED"
  | "AQ_ADDON";

/** The only error that this package throws on purpose: one clear sentence and a code. */
export class AqError extends Error {
  readonly code: AqErrorCode;

  constructor(code: AqErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "AqError";
    this.code = code;
  }
}
