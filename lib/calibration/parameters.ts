/** Learned parameters of a block, with their optimizer state. */

import type { MaskOf } from "../affine/gradual-mask.ts";
import type { StartValue } from "../affine/site.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";

const ADAM = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/** What is kept of transforms besides their values: which entries count, and how large they may be. */
export interface MatrixRule {
  readonly maskOf: MaskOf;
  readonly dominance: number;
  readonly floor: number;
}

/** The rule of what has no matrices. */
export const NO_MATRICES: MatrixRule = {
  maskOf: () => ({ band: 0, sf: 0 }),
  dominance: 0,
  floor: 0,
};

/** What learns at rates of its own: transforms, clipping logits, and gains with biases. */
export type ParameterGroup = "transform" | "clip" | "gain";

/** One learned tensor. */
export class Parameter {
  readonly name: string;
  readonly group: ParameterGroup;
  readonly value: Tensor;
  readonly masked: boolean;
  /** A floor under magnitudes leaves it alone. */
  readonly shift: boolean;
  readonly #m: Tensor;
  readonly #v: Tensor;

  constructor(name: string, group: ParameterGroup, start: StartValue) {
    this.name = name;
    this.group = group;
    this.masked = start.masked;
    this.shift = start.shift ?? false;
    this.value = Tensor.from(start.data, start.shape);
    this.#m = zerosLike(this.value);
    this.#v = zerosLike(this.value);
  }

  /**
   * One AdamW step; `step` counts from 1. A masked parameter's off-diagonals are then projected so
   * that its matrices stay strictly diagonally dominant, unless the rule's dominance is 0; returns the
   * smallest margin, else undefined. Magnitudes below the rule's floor are raised to it.
   */
  update(
    gradient: Tensor,
    step: number,
    lr: number,
    weightDecay: number,
    rule: MatrixRule,
  ): number | undefined {
    const inputs = [this.value, gradient, this.#m, this.#v];
    const params = { ...ADAM, lr, weight_decay: weightDecay, step };
    if (!this.masked) {
      invoke("adam", inputs, params);
      this.keepAway(rule.floor);
      return undefined;
    }
    const { sf, band } = rule.maskOf(this.value.shape.at(-1) as number);
    const margins = invokeOne("masked_adam", inputs, {
      ...params,
      sf,
      band,
      limit: rule.dominance,
    });
    const smallest = Math.min(...margins.floats());
    margins.dispose();
    this.keepAway(rule.floor);
    return smallest;
  }

  /** Raises magnitudes below `floor` to it, zeros and shifts excepted. */
  keepAway(floor: number): void {
    if (floor > 0 && this.group === "transform" && !this.shift) {
      invoke("keep_away", [this.value], { limit: floor });
    }
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
