/** The weight quantizers of a block: fake quantization in training, codes at the end. */

import type { Graph, Var } from "../autograd/graph.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Learned, LearnedWeight, QuantizedWeight } from "./quantizer.ts";
import { quantizerOf } from "./quantizers.ts";
import { CLIP_START, groupsPerRow, type QuantScheme } from "./scheme.ts";

/** What is quantized in a block, and how. */
export interface QuantizedLinears {
  readonly scheme: QuantScheme;
  /** Keys of the linears that are quantized, those together that servers fuse. */
  readonly fused: readonly (readonly string[])[];
  /** What each of these has in common, by its first key, as far as that is known and fixed. */
  readonly shared?: Readonly<Record<string, Tensor>> | undefined;
}

/** Starting logits of learned clipping of a weight. */
export function startClip(
  rows: number,
  columns: number,
  scheme: Pick<QuantScheme, "groupSize" | "numbers">,
): { data: Float32Array; shape: number[] } {
  const shape = quantizerOf(scheme).clipShape([rows, groupsPerRow(columns, scheme.groupSize)]);
  return { data: new Float32Array(shape.reduce((a, b) => a * b)).fill(CLIP_START), shape };
}

/**
 * Puts the fake-quantized weights of a block's linears in the place of the weights: lazily, with gradients
 * to them and to what `learned` gives for a linear, as far as each is given and wants one.
 */
export function fakeQuantLinears(
  graph: Graph,
  weights: Record<string, Var>,
  { scheme, fused, shared }: QuantizedLinears,
  learned: (key: string) => Learned<Var>,
): void {
  for (const keys of fused) {
    const own = keys.map((key) => weights[key] as Var);
    const common = shared?.[keys[0] as string];
    const quantize = quantizerOf(scheme).fakeWeights(graph, own, scheme, common);
    for (const [i, key] of keys.entries()) weights[key] = quantize(own[i] as Var, learned(key));
  }
}

/** What linears that servers fuse have in common, of weights that stay as they are; the caller owns it. */
export function sharedByLinears(
  weights: Readonly<Record<string, Tensor>>,
  { scheme, fused }: QuantizedLinears,
): Record<string, Tensor> {
  const all: Record<string, Tensor> = {};
  for (const keys of fused) {
    const found = quantizerOf(scheme).shared(keys.map((key) => weights[key] as Tensor));
    if (found) all[keys[0] as string] = found;
  }
  return all;
}

/**
 * Final codes of a block's linears, by key; the caller owns the tensors.
 *
 * Throws: AQ_NUMERIC where a scale leaves the range of its type, or a weight is not a number.
 */
export function quantizeLinears(
  weights: Readonly<Record<string, Tensor>>,
  { scheme, fused }: QuantizedLinears,
  learned: (key: string) => Learned<Tensor>,
): Record<string, QuantizedWeight> {
  const done: Record<string, QuantizedWeight> = {};
  for (const keys of fused) {
    const own = new Map<string, LearnedWeight>(
      keys.map((key) => [key, { w: weights[key] as Tensor, ...learned(key) }]),
    );
    Object.assign(done, Object.fromEntries(quantizerOf(scheme).codes(own, scheme)));
  }
  return done;
}

/** The weight that the codes stand for, f32 [O, I]. */
export function dequantizeWeight(weight: QuantizedWeight, groupSize: number): Tensor {
  const floats = weight.global ? "nvfp4" : "mxfp4";
  const numbers = weight.zero ? undefined : floats;
  return quantizerOf({ ...(numbers ? { numbers } : {}) }).values(weight, groupSize);
}

/** Frees the tensors of weights. */
export function disposeQuantized(weights: Readonly<Record<string, QuantizedWeight>>): void {
  for (const { codes, scale, zero, global } of Object.values(weights)) {
    for (const held of [codes, scale, zero, global]) held?.dispose();
  }
}
