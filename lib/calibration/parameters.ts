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
  /** Of masked ones: the margin of each matrix after the last update. */
  readonly #margins: Tensor | undefined;
  #isUpdated = false;

  constructor(name: string, group: ParameterGroup, start: StartValue, device = "cpu") {
    this.name = name;
    this.group = group;
    this.masked = start.masked;
    this.shift = start.shift ?? false;
    this.value = Tensor.from(start.data, start.shape, "f32", device);
    this.#m = zerosLike(this.value);
    this.#v = zerosLike(this.value);
    this.#margins = this.masked
      ? Tensor.empty([this.value.shape[0] as number], "f32", device)
      : undefined;
  }

  /** One that starts at a tensor's values, on its device. */
  static from(name: string, group: ParameterGroup, value: Tensor): Parameter {
    const start = { data: value.floats(), shape: value.shape, masked: false };
    return new Parameter(name, group, start, value.device);
  }

  /**
   * One AdamW step; `step` counts from 1. A masked parameter's off-diagonals are then projected so
   * that its matrices stay strictly diagonally dominant, unless the rule's dominance is 0. Magnitudes
   * below the rule's floor are raised to it.
   */
  update(gradient: Tensor, step: number, lr: number, weightDecay: number, rule: MatrixRule): void {
    const inputs = [this.value, gradient, this.#m, this.#v];
    const params = { ...ADAM, lr, weight_decay: weightDecay, step };
    if (this.#margins) {
      const { sf, band } = rule.maskOf(this.value.shape.at(-1) as number);
      const matrix = { ...params, sf, band, limit: rule.dominance };
      invokeOne("masked_adam", inputs, matrix, this.#margins).dispose();
    } else {
      invoke("adam", inputs, params);
    }
    this.#isUpdated = true;
    this.keepAway(rule.floor);
  }

  /** The smallest margin of its matrices after the last update; undefined without either. */
  async margin(): Promise<number | undefined> {
    if (!this.#margins || !this.#isUpdated) return undefined;
    return Math.min(...(await this.#margins.readAsync()));
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
    this.#margins?.dispose();
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

/** The smallest margin of all their matrices after the last updates; null without any. */
export async function smallestMargin(parameters: readonly Parameter[]): Promise<number | null> {
  let smallest: number | null = null;
  for (const parameter of parameters) {
    const own = await parameter.margin();
    if (own !== undefined) smallest = Math.min(smallest ?? own, own);
  }
  return smallest;
}

export function disposeParameters(parameters: readonly Parameter[]): void {
  for (const parameter of parameters) parameter.dispose();
}
