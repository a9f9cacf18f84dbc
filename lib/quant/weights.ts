/** The weight quantizer: fake quantization in training, codes at the end. */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import { AqError } from "../errors.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  CLIP_START,
  multipliesCodes,
  type QuantScheme,
  quantizesTokens,
  scaleFloors,
} from "./scheme.ts";

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

/**
 * W as training sees it: lazily fake-quantized, with gradients to W, to the clipping logits and to
 * the rounding offsets (the shape of W), as far as each is given and wants one.
 */
export function fakeQuantWeight(
  graph: Graph,
  w: Var,
  clip: Var | undefined,
  scheme: QuantScheme,
  offset?: Var,
): Var {
  const params = {
    bits: scheme.wbits,
    group: scheme.groupSize,
    symmetric: scheme.symmetric,
    floor: scaleFloors(scheme).weight,
    published: scheme.grids === "published",
    operand: weightOperand(scheme),
  };
  return fakeQuant(graph, w, clip, params, offset);
}

/** Products of 8-bit tokens are exact only when both grids are applied on load. */
function weightOperand(scheme: QuantScheme): "codes" | "values" | undefined {
  if (multipliesCodes(scheme)) return "codes";
  return quantizesTokens(scheme) ? undefined : "values";
}

/**
 * Grid of the final codes. Scales are rounded to float16 first, then zeros and codes are taken from
 * the rounded scale, so that no export rounds a second time.
 */
function finalGrid(
  w: Tensor,
  clip: Tensor | undefined,
  scheme: QuantScheme,
): { scale: Tensor; zero: Tensor } {
  const [scale, zero] = invoke("quant_grid", [w, clip], {
    bits: scheme.wbits,
    group: scheme.groupSize,
    symmetric: scheme.symmetric ? 1 : 0,
    floor: scaleFloors(scheme).weight,
    round_f16: 1,
    rule: scheme.grids === "published" ? 1 : 0,
  }) as [Tensor, Tensor];
  if (scope(() => invokeOne("all_finite", [scale]).item()) !== 1) {
    scale.dispose();
    zero.dispose();
    throw new AqError(
      "AQ_NUMERIC",
      "a weight scale is above 65504, the largest float16: the weights are too large to quantize",
    );
  }
  return { scale, zero };
}

/**
 * Final codes of W [O, I]: the nearest ones, or, with learned rounding offsets (the shape of W), the
 * nearest to W / scale + offset.
 *
 * Throws: AQ_NUMERIC if a scale leaves the range of float16.
 */
export function quantizeWeight(
  w: Tensor,
  clip: Tensor | undefined,
  scheme: QuantScheme,
  offset?: Tensor,
): QuantizedWeight {
  const { scale, zero } = finalGrid(w, clip, scheme);
  const codes = invokeOne("quantize", [w, scale, zero, offset], {
    bits: scheme.wbits,
    group: scheme.groupSize,
  });
  return { codes, scale, zero };
}

/** Damping of GPTQ, in parts of the mean diagonal of H, and the columns of a block. Source: GPTQ. */
const GPTQ = { damping: 0.01, block: 128 } as const;

/**
 * Final codes of W [O, I] by GPTQ on the same grid that `quantizeWeight` takes: each column makes up
 * for the errors of those before it, weighed by the second moments H = XtX / N [I, I] of the input.
 *
 * Throws: AQ_NUMERIC if a scale leaves the range of float16, or if H is not positive definite even
 * after damping.
 */
export function gptqWeight(
  w: Tensor,
  h: Tensor,
  clip: Tensor | undefined,
  scheme: QuantScheme,
): QuantizedWeight {
  const { scale, zero } = finalGrid(w, clip, scheme);
  try {
    const params = { ...GPTQ, bits: scheme.wbits, group: scheme.groupSize };
    return { codes: invokeOne("gptq", [w, h, scale, zero], params), scale, zero };
  } catch (error) {
    scale.dispose();
    zero.dispose();
    throw error;
  }
}

/** The weight that the codes stand for, f32 [O, I]. */
export function dequantizeWeight(
  { codes, scale, zero }: QuantizedWeight,
  groupSize: number,
): Tensor {
  return invokeOne("dequantize", [codes, scale, zero], { group: groupSize });
}
