/** The weight quantizer: fake quantization in training, codes at the end. */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import { AqError } from "../errors.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { CLIP_START, type QuantScheme, WEIGHT_FLOOR } from "./scheme.ts";

/** Codes u8 [O, I] with scale and zero f32 [O, G]; scale holds float16 values. w = (code - zero) scale. */
export interface QuantizedWeight {
  readonly codes: Tensor;
  readonly scale: Tensor;
  readonly zero: Tensor;
}

/** Groups of a row of `columns` weights. */
export function groupsPerRow(columns: number, groupSize: number): number {
  return groupSize ? Math.ceil(columns / groupSize) : 1;
}

/** Starting logits [2, O, G] of learned clipping. */
export function startClip(
  rows: number,
  columns: number,
  groupSize: number,
): { data: Float32Array; shape: number[] } {
  const groups = groupsPerRow(columns, groupSize);
  return { data: new Float32Array(2 * rows * groups).fill(CLIP_START), shape: [2, rows, groups] };
}

/** W as training sees it: lazily fake-quantized, with gradients to W and to the clipping logits. */
export function fakeQuantWeight(
  graph: Graph,
  w: Var,
  clip: Var | undefined,
  scheme: QuantScheme,
): Var {
  return fakeQuant(graph, w, clip, {
    bits: scheme.wbits,
    group: scheme.groupSize,
    symmetric: scheme.symmetric,
    floor: WEIGHT_FLOOR,
  });
}

/**
 * Final codes of W [O, I]. Scales are rounded to float16 first, then zeros and codes are taken from
 * the rounded scale, so that no export rounds a second time.
 *
 * Throws: AQ_NUMERIC if a scale leaves the range of float16.
 */
export function quantizeWeight(
  w: Tensor,
  clip: Tensor | undefined,
  scheme: QuantScheme,
): QuantizedWeight {
  const [scale, zero] = invoke("quant_grid", [w, clip], {
    bits: scheme.wbits,
    group: scheme.groupSize,
    symmetric: scheme.symmetric ? 1 : 0,
    floor: WEIGHT_FLOOR,
    round_f16: 1,
  }) as [Tensor, Tensor];
  if (scope(() => invokeOne("all_finite", [scale]).item()) !== 1) {
    scale.dispose();
    zero.dispose();
    throw new AqError(
      "AQ_NUMERIC",
      "a weight scale is above 65504, the largest float16: the weights are too large to quantize",
    );
  }
  const codes = invokeOne("quantize", [w, scale, zero], {
    bits: scheme.wbits,
    group: scheme.groupSize,
  });
  return { codes, scale, zero };
}

/** The weight that the codes stand for, f32 [O, I]. */
export function dequantizeWeight(
  { codes, scale, zero }: QuantizedWeight,
  groupSize: number,
): Tensor {
  return invokeOne("dequantize", [codes, scale, zero], { group: groupSize });
}
