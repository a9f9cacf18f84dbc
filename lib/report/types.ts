/** What report.json says of a finished run; report.html shows the same. */

import type { BlockReport } from "../types.ts";

export type Setting = string | number | boolean | null;

/** A linear of the block, over all blocks. Bits are those that the codes need, not those of a file. */
export interface LinearBits {
  readonly linear: string;
  readonly weights: number;
  readonly codeBits: number;
  /** One for each group: float16, or a byte of 4-bit floats, which in NVFP4 have a float32 a matrix beside. */
  readonly scaleBits: number;
  /** As wide as a code, one for each group; none where the grid is symmetric. */
  readonly zeroBits: number;
  readonly bitsPerWeight: number;
}

/** Tensors that are kept in full: embeddings, head, norms and biases, matrices of the run time. */
export interface OtherBits {
  readonly name: string;
  readonly parameters: number;
  readonly bits: number;
}

/** What the weights cost. */
export interface BitsReport {
  readonly linears: readonly LinearBits[];
  /** All linears together. */
  readonly total: LinearBits;
  /** Linears that are not quantized, as they are stored; they count as weights. */
  readonly kept: readonly OtherBits[];
  /** Matrices that inference has to apply beside the linears; they count as bits of the weights. */
  readonly runtime: readonly OtherBits[];
  /** Linears, kept ones too, and run-time matrices, by weight of the linears. */
  readonly bitsPerWeight: number;
  readonly rest: readonly OtherBits[];
  /** Everything, by parameter of the source. */
  readonly bitsPerParameter: number;
}

/** A quantity of the whole run against the epoch, for phases that train all blocks at once. */
export interface RunCurve {
  readonly title: string;
  readonly unit: string;
  /** Epoch of the first value; 0 where it is the state before any. */
  readonly first: number;
  readonly values: readonly number[];
}

export interface RunReport {
  readonly format: 1;
  readonly writtenBy: string;
  /** ISO 8601. */
  readonly finished: string;
  /** Repeats the run, on any folder. */
  readonly command: string;
  /** Every setting with the value that it had, defaults included. */
  readonly settings: Readonly<Record<string, Setting>>;
  readonly machine: {
    readonly device: string;
    readonly threads: number;
    readonly system: string;
    readonly node: string;
  };
  readonly model: {
    readonly path: string;
    readonly out: string;
    readonly family: string;
    readonly blocks: number;
    readonly hidden: number;
    readonly heads: number;
    readonly kvHeads: number;
    readonly headDim: number;
    readonly mlp: number;
    readonly vocabulary: number;
    readonly parameters: number;
    readonly dtype: string;
  };
  /** "W4A4". */
  readonly scheme: string;
  readonly recipe: string;
  readonly calibration: {
    readonly text: string;
    readonly windows: number;
    readonly seqlen: number;
  };
  readonly perplexity: {
    readonly before: number;
    readonly after: number;
    readonly windows: number;
  };
  readonly blocks: readonly BlockReport[];
  readonly curves: readonly RunCurve[];
  readonly seconds: number;
  /** Where they went: phases of the blocks added up, then the phases of the run. */
  readonly phaseSeconds: Readonly<Record<string, number>>;
  readonly bits: BitsReport;
  readonly notes: readonly string[];
}
