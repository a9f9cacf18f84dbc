/**
 * Whole numbers of 2 to 8 bits on grids with a scale and a zero point: for each output channel or group of
 * weights, and for each token.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { fakeQuant } from "../autograd/ops/fake-quant.ts";
import { AqError } from "../errors.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ActivationHook } from "./activations.ts";
import type { QuantizedWeight, Quantizer } from "./quantizer.ts";
import {
  type GridStyle,
  multipliesCodes,
  type QuantScheme,
  quantizesTokens,
  scaleFloors,
} from "./scheme.ts";

/** Whole numbers have zero points. */
export interface QuantizedIntegers extends QuantizedWeight {
  readonly zero: Tensor;
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
): QuantizedIntegers {
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
): QuantizedIntegers {
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

/**
 * Dynamic per-token quantization to `bits`, asymmetric, with one learned clipping logit for each
 * activation (a name without one is not clipped).
 */
export class TokenQuantizers implements ActivationHook {
  readonly #bits: number;
  readonly #clips: ReadonlyMap<string, Var>;
  readonly #style: GridStyle & Partial<QuantScheme>;

  /** `style` may be a whole scheme: its weights then say how tokens are best multiplied. */
  constructor(
    bits: number,
    clips: ReadonlyMap<string, Var> = new Map(),
    style: GridStyle & Partial<QuantScheme> = {},
  ) {
    this.#bits = bits;
    this.#clips = clips;
    this.#style = style;
  }

  apply(graph: Graph, name: string, x: Var, group: number): Var {
    const { wbits = 16, groupSize = 0, symmetric = false, ...style } = this.#style;
    const scheme = { wbits, groupSize, symmetric, ...style, abits: this.#bits };
    return fakeQuant(graph, x, this.#clips.get(name), {
      bits: this.#bits,
      group: this.#style.heads === "together" ? 0 : group,
      symmetric: false,
      floor: scaleFloors(this.#style).token,
      published: this.#style.grids === "published",
      // q, k and v, which have a group, go into attention.
      operand: group === 0 && multipliesCodes(scheme) ? "codes" : undefined,
      keepsValues: true,
    });
  }
}

export const integers: Quantizer = {
  clipShape: (grid) => [2, ...grid],
  shared: () => undefined,
  fakeWeights:
    (graph, _fused, scheme) =>
    (w, { clip, offset }) =>
      fakeQuantWeight(graph, w, clip, scheme, offset),
  codes: (weights, scheme) =>
    new Map(
      [...weights].map(([key, { w, clip, offset }]) => [
        key,
        quantizeWeight(w, clip, scheme, offset),
      ]),
    ),
  values: ({ codes, scale, zero }, groupSize) =>
    invokeOne("dequantize", [codes, scale, zero], { group: groupSize }),
  tokens: (scheme, { clips }) => new TokenQuantizers(scheme.abits, clips, scheme),
};
