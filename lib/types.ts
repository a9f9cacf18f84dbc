/** The public vocabulary: options, events and results of quantize, evaluate and inspect. */

import type { ExportResult, FormatName, TargetName } from "./export-types.ts";

export type { InspectOptions, InspectResult, RunProgress, SiteReport } from "./inspect-types.ts";

/**
 * Recipes: `default` (what we recommend), `affine` alone, `lwc-only` (learned clipping), `rtn`;
 * `paper-w4a4` and `paper-weight-only` do what the published code of AffineQuant does.
 */
export type RecipeName =
  | "default"
  | "affine"
  | "lwc-only"
  | "round"
  | "rtn"
  | "paper-w4a4"
  | "paper-weight-only";

/** What `aq-native quantize` takes; names and meanings are those of the command's options. */
export interface QuantizeOptions {
  /** Folder of a Hugging Face checkpoint. */
  readonly model: string;
  /** Folder to write. */
  readonly out: string;
  /**
   * Weights and activations by a name that servers know: NVFP4, NVFP4A16, MXFP4, MXFP4A16 (4-bit floats),
   * W4A16, W3A16, W2A16, W4A4, W8A8; instead of wbits and abits, or beside equal ones.
   */
  readonly scheme?: string;
  /** Linears that are not quantized: names of the checkpoint, or ends of such, with `*` for any characters. */
  readonly keep?: readonly string[];
  /** Bits of a weight, 2..8. Default 4. */
  readonly wbits?: number;
  /** Bits of an activation, 2..8, or 16 for none. Default 16. */
  readonly abits?: number;
  /** Weights that share a scale, along the input; 0 or absent: a whole output channel, or the scheme's. */
  readonly groupSize?: number;
  readonly recipe?: RecipeName;
  /** Plain-text file to calibrate on; absent: the text shipped with the package. */
  readonly calib?: string;
  /**
   * What calibration windows are: `text`, cut from the text (default), or `model`, written by the model
   * itself, each going on from a few tokens of the text. There can be as many of these as are asked for.
   */
  readonly calibSource?: CalibSource;
  /** Calibration windows, default 32. */
  readonly nsamples?: number;
  /** Tokens of a window, default min(2048, the model's maximum). */
  readonly seqlen?: number;
  /** Passes over the windows for each block, default 20. */
  readonly epochs?: number;
  /** Windows of an optimizer step, whose loss is their mean. Default 1. */
  readonly batch?: number;
  /** `sequential` (the first windows, default) or `random` (seeded). */
  readonly sampling?: "sequential" | "random";
  readonly symmetric?: boolean;
  /** Exponent of the activation statistic in the starting scales, default 0.5. */
  readonly alpha?: number;
  /** Stability factor of the gradual mask, default the recipe's, mostly 0.1. */
  readonly sf?: number;
  /** Learning rate of the transforms, default 5e-3. */
  readonly letLr?: number;
  /** Learning rate of the clipping logits, default 1e-2. */
  readonly lwcLr?: number;
  /** Weight decay, default 0. */
  readonly wd?: number;
  /**
   * A full matrix behind each norm, whose inverse is applied at run time: a larger model that only
   * aq-native runs. Default: the recipe's.
   */
  readonly normFull?: boolean;
  /** Rotate the residual stream first: `auto` (default) where the recipe wants it. */
  readonly rotate?: "auto" | "on" | "off";
  /** `down`: a Hadamard transform runs before the down projection. Default none. */
  readonly hadamard?: "none" | "down";
  /** Epochs that train all blocks against the full-precision logits at the end. Default 0: none. */
  readonly polish?: number;
  /** How the last codes are found; default the recipe's. */
  readonly rounding?: "learned" | "nearest" | "gptq";
  /** Add the loss against the full-precision block on the quantized input. Default: abits < 16 or wbits = 2. */
  readonly augLoss?: boolean;
  readonly seed?: number;
  /** Threads of the CPU backend, default all cores (or AQ_THREADS). */
  readonly threads?: number;
  readonly device?: DeviceName;
  readonly precision?: PrecisionName;
  /** Replace what is in `out`. */
  readonly overwrite?: boolean;
  /** Formats to write beside the run, each into a folder of its name in `out` (`aq`: aq-packed). */
  readonly format?: readonly FormatName[];
  /** Whoever is to load the result: the format is chosen for it, beside those of `format`. */
  readonly target?: TargetName;
  /** What to do with a run that is in `out` already. Default auto. */
  readonly resume?: ResumeMode;
  /**
   * Bytes that activation streams may take in the device's memory; what is beyond goes to files in
   * `out`. The result does not depend on it. Default: no limit, on a GPU half of its memory.
   */
  readonly streamMemory?: number;
}

/**
 * Where it runs: `auto` (default) is the first GPU where there is one and its addon, else the CPU;
 * `cuda` is the first GPU, `cuda:1` the second.
 */
export type DeviceName = "auto" | "cpu" | "cuda" | `cuda:${number}`;

/**
 * Operands of the matrix products, whose sums are f32 in each case. Default bf16 on a GPU; the CPU has
 * f32 alone.
 */
export type PrecisionName = "f32" | "bf16" | "f16";

/**
 * `auto` goes on with an unfinished run and answers for a finished one, else starts; `required` refuses
 * to start; `never` refuses to go on.
 */
export type ResumeMode = "auto" | "required" | "never";

export type CalibSource = "text" | "model";

/** `rotate` changes the basis, `polish` trains all blocks, `export` writes the checkpoint. */
export type RunStage = "rotate" | "polish" | "export";

/**
 * What quantizing costs one linear, on some calibration windows: the relative change of its output,
 * |changed - full precision| / |full precision|, by its weights alone and by its input alone.
 */
export interface LayerError {
  /** As the checkpoint calls it. */
  readonly name: string;
  readonly weight: number;
  /** Null where its input is not quantized. */
  readonly activation: number | null;
}

/** What happened to one block. */
export interface BlockReport {
  readonly block: number;
  /** Mean loss of the first and the last epoch; null when nothing was trained. */
  readonly lossFirst: number | null;
  readonly lossLast: number | null;
  /** Mean loss of each epoch, by phase that trained, in the order in which they ran. */
  readonly losses: Readonly<Record<string, readonly number[]>>;
  /** |y - y'| / |y - x| after folding, quantizers off, float32; null when nothing was folded. */
  readonly equivalence: number | null;
  /** The same after the cast to the stored dtype. */
  readonly equivalenceStored: number | null;
  /** False: the recipe's transforms are not exact on this model, and the two above have no limit. */
  readonly equivalent?: boolean;
  /** Smallest 1 - (sum of off-diagonals)/|diagonal| over the rows of all matrices; null without one. */
  readonly dominanceMargin: number | null;
  /** |quantized - full precision| / |full precision| of the block's output stream (Frobenius). */
  readonly streamError: number;
  /** By linear; what is kept as it was is absent. Runs of earlier versions have none. */
  readonly layers?: Readonly<Record<string, LayerError>>;
  readonly skippedSteps: number;
  /** null, or what was done because training failed. */
  readonly fallback: null | "half-rate" | "quarter-rate" | "nearest" | "rtn";
  readonly seconds: number;
  /** The same, split by phase. */
  readonly phaseSeconds: Readonly<Record<string, number>>;
}

/** What training all blocks at once did. */
export interface PolishReport {
  /** Windows trained on, and windows held back to judge by. */
  readonly windows: number;
  readonly heldBack: number;
  /**
   * Mean KL divergence of the model, as it would be written, from full precision on the windows held
   * back: at the start, then after each epoch.
   */
  readonly divergence: readonly number[];
  /** Epochs behind the state that was kept, the best of these; 0: the start. */
  readonly kept: number;
  /** Mean loss of each epoch, on the windows trained on. */
  readonly losses: readonly number[];
  readonly skippedSteps: number;
  readonly seconds: number;
}

export interface QuantizeResult {
  readonly out: string;
  readonly seconds: number;
  readonly pplBefore: number;
  readonly pplAfter: number;
  readonly blocks: readonly BlockReport[];
  /** Present when all blocks were polished. */
  readonly polish?: PolishReport;
  /** Present when formats were asked for. */
  readonly formats?: readonly ExportResult[];
}

export type QuantizeEvent =
  | {
      readonly event: "start";
      readonly model: string;
      readonly family: string;
      readonly blocks: number;
      readonly windows: number;
      readonly seqlen: number;
      readonly wbits: number;
      readonly abits: number;
      /** "W4A16 g128", "NVFP4". */
      readonly scheme: string;
      readonly recipe: RecipeName;
      readonly threads: number;
      /** What it is and how it computes, in words. */
      readonly device: string;
    }
  /** Comes after `start` when blocks of an earlier session are used; alone before `done` when all is done. */
  | {
      readonly event: "resume";
      readonly blocksDone: number;
      readonly blocks: number;
      readonly finished: boolean;
    }
  /** The model writes calibration windows: tokens that are there, of how many. */
  | {
      readonly event: "writing";
      readonly tokens: number;
      readonly of: number;
      readonly secondsLeft: number | null;
    }
  /** Work on the whole model, between or after the blocks. */
  | { readonly event: "stage"; readonly stage: RunStage }
  /** Something a person should know: which text is used, fewer windows than asked for, a skipped step. */
  | { readonly event: "note"; readonly text: string }
  | {
      readonly event: "phase";
      readonly block: number;
      /** `replay` passes the streams through a block of an earlier session. */
      readonly phase:
        | "replay"
        | "statistics"
        | "affine"
        | "fold"
        | "round"
        | "gptq"
        | "propagate"
        | "write";
    }
  /** One optimizer step; throttled by whoever shows it. */
  | {
      readonly event: "step";
      readonly block: number;
      readonly blocks: number;
      readonly epoch: number;
      readonly epochs: number;
      readonly step: number;
      readonly steps: number;
      readonly loss: number;
      /** Estimated seconds until the whole run is done, or null while unknown. */
      readonly secondsLeft: number | null;
    }
  | {
      readonly event: "epoch";
      readonly block: number;
      readonly blocks: number;
      readonly epoch: number;
      readonly epochs: number;
      readonly loss: number;
      readonly dominanceMargin: number | null;
      readonly secondsLeft: number | null;
    }
  | ({ readonly event: "block"; readonly blocks: number } & BlockReport)
  /** One step of all blocks at once, or, with `divergence`, the end of an epoch (-1: the start). */
  | {
      readonly event: "polish";
      readonly epoch: number;
      readonly epochs: number;
      readonly step: number;
      readonly steps: number;
      readonly loss: number | null;
      /** On the windows held back. */
      readonly divergence: number | null;
      readonly secondsLeft: number | null;
    }
  | {
      readonly event: "eval";
      readonly which: "before" | "after";
      readonly window: number;
      readonly windows: number;
      readonly ppl: number | null;
    }
  /** A format was written. */
  | ({ readonly event: "format" } & ExportResult)
  | ({ readonly event: "done" } & QuantizeResult);

export interface EvaluateOptions {
  readonly model: string;
  /** Plain-text file. */
  readonly text: string;
  readonly seqlen?: number;
  /** At most this many windows, from the first. */
  readonly windows?: number;
  /** 16 switches a quantized folder's activation quantizers off. */
  readonly abits?: number;
  readonly threads?: number;
  readonly device?: DeviceName;
  readonly precision?: PrecisionName;
}

export interface EvaluateResult {
  readonly ppl: number;
  /** Standard error of the perplexity, from the spread of the windows' mean losses. */
  readonly stderr: number;
  readonly windows: number;
  readonly tokens: number;
}

export interface EvaluateEvent {
  readonly event: "window";
  readonly window: number;
  readonly windows: number;
  readonly ppl: number;
}

/** How to follow and stop a run. */
export interface RunHooks<E> {
  readonly onEvent?: (event: E) => void;
  readonly signal?: AbortSignal;
}
