/** What inspect says of a checkpoint, and of a run. */

export interface InspectOptions {
  readonly model: string;
}

export interface SiteReport {
  /** "norm", "vo", "qk-pairs", "qk-gains", "updown" and where it sits. */
  readonly site: string;
  readonly map: string;
  readonly parameters: number;
  readonly foldsInto: readonly string[];
}

export interface InspectResult {
  readonly model: string;
  readonly family: string;
  readonly blocks: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlp: number;
  readonly vocabulary: number;
  readonly maxTokens: number;
  readonly tiedHead: boolean;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly rope: string;
  /** Where attention looks back less far than there are positions; it then bounds maxTokens. */
  readonly slidingWindow?: number;
  /** True where q and k have a norm over the features of each head. */
  readonly headNorms?: boolean;
  readonly dtype: string;
  readonly shards: number;
  readonly parameters: number;
  readonly bytes: number;
  /** Present when the weights are quantized: by aq-native, or packed by whoever wrote the folder. */
  readonly quantized: null | {
    /** How the codes are packed; absent where weights are stored dequantized. */
    readonly format?: string;
    readonly wbits: number;
    readonly abits: number;
    readonly groupSize: number;
    /** Of 4-bit floats: NVFP4, NVFP4A16, MXFP4, MXFP4A16. */
    readonly scheme?: string;
    /** Linears that are not quantized, where there are some. */
    readonly kept?: number;
    /** A transform runs before the down projection. */
    readonly hadamardDown?: true;
  };
  readonly sites: readonly SiteReport[];
  /** Present for the output folder of a run; of an unfinished one, the rest describes its source. */
  readonly run?: RunProgress;
}

/** How far a run has come. */
export interface RunProgress {
  readonly out: string;
  readonly status: "running" | "done";
  readonly writtenBy: string;
  /** The source's folder. */
  readonly source: string;
  readonly blocks: number;
  readonly blocksDone: number;
  readonly pplBefore: number | null;
  readonly pplAfter: number | null;
  /** Of all sessions so far. */
  readonly seconds: number;
  /** For the blocks that are left, from those that are done; null while there are none. */
  readonly secondsLeft: number | null;
  /** What is still to be done, in order. */
  readonly left: readonly string[];
}
