/** Learned parameters of a block, with their optimizer state. */

import type { StartValue } from "../affine/site.ts";
import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Share of the diagonal that a row's off-diagonals may reach; what is above is projected back. */
export const DOMINANCE_LIMIT = 0.9;

const ADAM = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/** What learns at rates of its own: transforms, clipping logits, and gains with biases. */
export type ParameterGroup = "transform" | "clip" | "gain";

/** One learned tensor. */
export class Parameter {
  readonly name: string;
  readonly group: ParameterGroup;
  readonly value: Tensor;
  readonly masked: boolean;
  readonly #m: Tensor;
  readonly #v: Tensor;

  constructor(name: string, group: ParameterGroup, start: StartValue) {
    this.name = name;
    this.group = group;
    this.masked = start.masked;
    this.value = Tensor.from(start.data, start.shape);
    this.#m = zerosLike(this.value);
    this.#v = zerosLike(this.value);
  }

  /**
   * One AdamW step; `step` counts from 1. A masked parameter's off-diagonals are then projected so
   * that its matrices stay strictly diagonally dominant; returns the smallest margin, else undefined.
   */
  update(
    gradient: Tensor,
    step: number,
    lr: number,
    weightDecay: number,
    mask: Mask,
  ): number | undefined {
    const inputs = [this.value, gradient, this.#m, this.#v];
    const params = { ...ADAM, lr, weight_decay: weightDecay, step };
    if (!this.masked) {
      invoke("adam", inputs, params);
      return undefined;
    }
    const margins = invokeOne("masked_adam", inputs, {
      ...params,
      sf: mask.sf,
      band: mask.band,
      limit: DOMINANCE_LIMIT,
    });
    const smallest = Math.min(...margins.floats());
    margins.dispose();
    return smallest;
  }

  dispose(): void {
    this.value.dispose();
    this.#m.dispose();
    this.#v.dispose();
  }
}

function zerosLike(tensor: Tensor): Tensor {
  const zeros = Tensor.empty(tensor.shape, tensor.dtype, tensor.device);
  invoke("fill", [zeros], { value: 0 });
  return zeros;
}

/** Rate of step t of `steps`, falling from 1 to 0 along half a cosine. */
export function cosine(t: number, steps: number): number {
  return (1 + Math.cos((Math.PI * t) / steps)) / 2;
}

export function disposeParameters(parameters: readonly Parameter[]): void {
  for (const parameter of parameters) parameter.dispose();
}
