/**
 * What a model family is. A family is one file that exports one `ModelFamily`, plus a line in
 * registry.ts; calibration, folding, evaluation and export follow from this description.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import type { AttentionParams } from "../autograd/ops/attention.ts";
import type { HadamardFactors } from "../autograd/ops/hadamard.ts";
import type { ActivationHook } from "../quant/activations.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { RopeSettings } from "./rope.ts";

/** Sizes that every family has, in the letters of the documentation. */
export interface ModelShape {
  /** C */
  readonly hidden: number;
  /** L */
  readonly blocks: number;
  /** H */
  readonly heads: number;
  /** Hkv */
  readonly kvHeads: number;
  /** D */
  readonly headDim: number;
  /** F */
  readonly mlp: number;
  /** V */
  readonly vocabulary: number;
  /** Longest sequence: there are no more positions, or attention would not see all of it any more. */
  readonly maxTokens: number;
}

/** A tensor of the checkpoint: what the block calls it, and its name and shape in the files. */
export interface TensorSpec {
  readonly key: string;
  readonly name: string;
  readonly shape: readonly number[];
}

/** A linear of the block: its weight's key (bias: `key.bias`) and the activation that it reads. */
export interface LinearSpec {
  readonly key: string;
  readonly out: number;
  readonly in: number;
  readonly activation: string;
  /** Its output goes a way of its own, so that it is not joined with others (joined.ts). */
  readonly alone?: boolean;
}

/** A place where an invertible map and its inverse cancel; lib/affine has one file for each kind. */
export type SiteSpec =
  | {
      readonly kind: "updown";
      readonly up: string;
      readonly down: string;
      readonly activation: string;
    }
  | {
      readonly kind: "norm" | "norm-full";
      readonly norm: string;
      readonly consumers: readonly string[];
      readonly activation: string;
      /** The one consumer whose statistics the published starts take; the first where absent. */
      readonly lead?: string;
    }
  | { readonly kind: "vo"; readonly v: string; readonly o: string; readonly activation: string }
  | { readonly kind: "qk-pairs"; readonly q: string; readonly k: string }
  /** q and k: the gains of their norms. */
  | { readonly kind: "qk-gains"; readonly q: string; readonly k: string }
  | { readonly kind: "qk-matrix" | "qk-vector"; readonly q: string; readonly k: string };

/** How the block meets the residual stream: what an orthogonal change of its basis has to turn. */
export interface ResidualSpec {
  /** Norms that read the stream, and the linears behind each. */
  readonly reads: readonly { readonly norm: string; readonly consumers: readonly string[] }[];
  /** Linears that add to the stream. */
  readonly writes: readonly string[];
  /** Outer tensors whose rows enter the stream. */
  readonly embeddings: readonly string[];
  /** The norms subtract the mean (LayerNorm), so the ones vector must keep its place. */
  readonly centred: boolean;
}

/** Named values of a block: weights by key. */
export type Weights = Readonly<Record<string, Var>>;

/** How a block's queries meet keys and values: whole sequences, or the caches of a decoder. */
export type Attend = (graph: Graph, q: Var, k: Var, v: Var, params: AttentionParams) => Var;

/**
 * The same of q, k and v side by side, q and k to be turned by the tables first if there are any; the result
 * is rounded to the type of `round`, if it names one.
 */
export type AttendJoined = (
  graph: Graph,
  qkv: Var,
  params: AttentionParams & {
    readonly turn: { readonly cos: Tensor; readonly sin: Tensor } | undefined;
    readonly round: number;
  },
) => Var;

/** Constants that a block needs for sequences of T tokens. */
export interface BlockContext {
  readonly device: string;
  /** Rotary tables; row t is position t. */
  readonly tensors: Readonly<Record<string, Tensor>>;
  /** What stands for causal attention over the whole sequence, if anything does. */
  readonly attend?: Attend | undefined;
  /** The same for blocks whose weights are joined (joined.ts). */
  readonly attendJoined?: AttendJoined | undefined;
  /** The transform before down, if the model has one. */
  readonly hadamardDown?: HadamardFactors | undefined;
  dispose(): void;
}

/** What `inspect` says of a model beyond its shape. */
export interface ModelTraits {
  readonly tiedHead: boolean;
  /** q, k and v have biases, or all four linears of attention. */
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly rope: string;
  /** Present where attention looks back less far than there are positions: it is what bounds a sequence. */
  readonly slidingWindow?: number;
  /** Present where q and k have a norm over the features of each head. */
  readonly headNorms?: boolean;
}

/** A checkpoint's model: a family bound to one configuration. */
export interface Model {
  readonly family: string;
  readonly shape: ModelShape;
  /** For people: what `inspect` says beyond the shape. */
  readonly traits: ModelTraits;
  /** What a file must say of a block with RMSNorm and rotary positions; null in another. */
  readonly rotary: (RopeSettings & { readonly rmsEps: number }) | null;
  /** The block's linears, in the order in which they run. */
  readonly linears: readonly LinearSpec[];
  /** Activations that are quantized when abits < 16, and how: whole token, or per head. */
  readonly activations: readonly string[];
  /** Where transforms may sit, in the order of folding. */
  readonly sites: readonly SiteSpec[];
  readonly residual: ResidualSpec;
  /** A transform that runs before down; null in a model as others know it. */
  readonly hadamardDown: HadamardDown | null;
  /** Weights of block i. */
  blockTensors(i: number): readonly TensorSpec[];
  /** Weights outside the blocks: embeddings, last norm, head. */
  outerTensors(): readonly TensorSpec[];
  /** Name of the head's weight in a checkpoint, also where it is tied and absent. */
  headName(): string;
  /** Constants on a device, "cpu" where none is named. */
  context(tokens: number, dtype: "f32" | "f64", device?: string): BlockContext;
  /**
   * ids i32 [B, T] on the device of the weights -> [B, T, C]. `positions`, i32 [B T] beside them, where
   * they are not 0 .. T - 1.
   */
  embed(
    outer: Readonly<Record<string, Tensor>>,
    ids: Tensor,
    positions?: Tensor | undefined,
  ): Tensor;
  /** x [B, T, C] -> [B, T, C]. */
  block(graph: Graph, context: BlockContext, w: Weights, x: Var, activations: ActivationHook): Var;
  /** x [M, C] -> logits [M, V], the last norm included. */
  head(graph: Graph, outer: Weights, x: Var): Var;
}

/** A Hadamard transform before down (hadamard-down.ts), the same in all blocks. */
export interface HadamardDown {
  /** [F], each 1 or -1. */
  readonly signs: Int8Array;
}

/** What a model computes beyond its family's architecture. */
export interface ModelExtras {
  readonly hadamardDown?: HadamardDown | undefined;
  /**
   * Keys of tensors in every block that the architecture lacks: `norm1.residue` [C, C], applied to the
   * norm's output like a linear's weight, `norm1.beta`, `q.bias`. The block applies what it is given.
   */
  readonly added?: readonly string[] | undefined;
}

/** Reads a config.json whose model_type is one of `modelTypes`. */
export interface ModelFamily {
  readonly modelTypes: readonly string[];
  /** The class in transformers, as `architectures` of a config.json names it. */
  readonly architecture: string;
  /**
   * `has` tells whether the checkpoint holds a tensor, for names that differ between exporters.
   * Throws: AQ_MODEL naming the key that is missing, contradictory or not supported.
   */
  open(config: unknown, has: (name: string) => boolean, extras?: ModelExtras): Model;
}
