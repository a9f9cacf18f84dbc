/** What verify takes and gives. */

export interface VerifyOptions {
  /** A folder that a run or an export wrote, a GGUF file, or a run's own folder with all in it. */
  readonly dir: string;
  /** Folder that was `out` of the run; found from `dir` where absent. */
  readonly run?: string;
}

/** One folder or file, every tensor of which is what the run found. */
export interface VerifiedFolder {
  /** "gptq_v2", "gguf", "hf", ... */
  readonly format: string;
  readonly path: string;
  /** Quantized linears, and what was compared of them, number by number. */
  readonly linears: number;
  readonly codes: number;
  readonly scales: number;
  readonly zeros: number;
  /** Other tensors, and their numbers. */
  readonly others: number;
  readonly values: number;
  /** Where the format is narrower than the run, or something could not be compared: in sentences. */
  readonly notes: readonly string[];
}

export interface VerifyResult {
  /** Folder of the run that it was compared with. */
  readonly run: string;
  readonly folders: readonly VerifiedFolder[];
}

/** How far it has come. */
export interface VerifyEvent {
  readonly event: "verify";
  readonly format: string;
  readonly tensor: string;
}
