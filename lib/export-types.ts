/** The public vocabulary of formats: what a finished run can be written as, and what came of it. */

/** What a finished run can be written as; docs/formats.md has their layouts. */
export type FormatName =
  | "hf"
  | "gptq"
  | "gptq_v2"
  | "awq"
  | "compressed-tensors"
  | "modelopt"
  | "gguf"
  | "gguf-f16"
  | "aq";

/** Programs that load what is written. */
export type TargetName = "vllm" | "sglang" | "tensorrt-llm" | "transformers" | "llama.cpp";

/**
 * How far the weights of a file are from those of the run: the largest difference in parts of the
 * largest weight of its tensor, and the root-mean-square difference in parts of that of the weights.
 */
export interface WeightChange {
  readonly max: number;
  readonly rms: number;
}

export interface ExportOptions {
  /** Folder that was `out` of a finished run. */
  readonly run: string;
  /** Folder to write. */
  readonly out: string;
  /** Either the format, or the program that is to load it. */
  readonly format?: FormatName;
  readonly target?: TargetName;
  /** Replace what an earlier export left in `out`. */
  readonly overwrite?: boolean;
}

export interface ExportResult {
  readonly format: FormatName;
  readonly out: string;
  /** Names in `out`, and their bytes together. */
  readonly files: readonly string[];
  readonly bytes: number;
  /** Of the quantized weights. */
  readonly change: WeightChange;
  /** Of the tensors that are not quantized; null where they are the same. */
  readonly otherChange: WeightChange | null;
  /** What was read back, by other code, and found to be the run's. */
  readonly verified: VerifiedCounts;
  /** Sentences that a person should read. */
  readonly notes: readonly string[];
  readonly seconds: number;
}

/** Tensors that were compared with the run, number by number. */
export interface VerifiedCounts {
  readonly linears: number;
  readonly codes: number;
  readonly others: number;
}

/** One tensor is about to be written. */
export interface ExportEvent {
  readonly event: "write";
  readonly format: FormatName;
  readonly tensor: string;
}
