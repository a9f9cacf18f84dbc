/** Learned parameters of a block, with their optimizer state. */

import type { MaskOf } from "../affine/gradual-mask.ts";
import type { StartValue } from "../affine/site.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { MaskedMatrices } from "./masked-matrices.ts";
import type { StepControl } from "./train-step.ts";

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

/** How a step changes what it changes. */
export interface UpdateRule {
  readonly control: StepControl;
  readonly weightDecay: number;
  readonly matrices: MatrixRule;
}

/** Inputs of the optimizers' ops that say whether and how far they go, and the rate and step they get. */
export function controlled(
  { guard, schedule, rate, step }: StepControl,
  full: number,
): {
  readonly leading: readonly (Tensor | undefined)[];
  readonly lr: number;
  readonly step: number;
} {
  return { leading: [guard, schedule], lr: schedule ? full : full * rate, step };
}

/** One learned tensor. */
export class Parameter {
  readonly name: string;
  readonly group: ParameterGroup;
  readonly value: Tensor;
  readonly masked: boolean;
  /** A floor under magnitudes leaves it alone. */
  readonly shift: boolean;
  readonly #isMultiplied: boolean;
  readonly #m: Tensor;
  readonly #v: Tensor;
  #shown: MaskedMatrices | undefined;

  constructor(name: string, group: ParameterGroup, start: StartValue, device = "cpu") {
    this.name = name;
    this.group = group;
    this.masked = start.masked;
    this.shift = start.shift ?? false;
    this.#isMultiplied = start.multiplied ?? false;
    this.value = Tensor.from(start.data, start.shape, "f32", device);
    this.#m = zerosLike(this.value);
    this.#v = zerosLike(this.value);
  }

  /**
   * What a block has of it: the value, or, of masked ones, the matrices under their mask, and these in the
   * type of the products where it multiplies by them.
   */
  shown(maskOf: MaskOf): Pick<MaskedMatrices, "tensor" | "rounded"> {
    if (!this.masked) return { tensor: this.value, rounded: undefined };
    this.#shown ??= new MaskedMatrices(this.value, this.#isMultiplied);
    this.#shown.show(this.value, maskOf(this.value.shape.at(-1) as number));
    return this.#shown;
  }

  /** Frees what only steps need. */
  endSteps(): void {
    this.#shown?.dispose();
    this.#shown = undefined;
  }

  /** One that starts at a tensor's values, on its device. */
  static from(name: string, group: ParameterGroup, value: Tensor): Parameter {
    const start = { data: value.floats(), shape: value.shape, masked: false };
    return new Parameter(name, group, start, value.device);
  }

  /**
   * One AdamW step of those that have a gradient, each at its share of its rate; the gradient of masked
   * ones is that of what is shown. Magnitudes below the rule's floor are raised to it. Off-diagonals of masked
   * ones are then projected so that their matrices stay strictly diagonally dominant, unless the rule's
   * dominance is 0.
   *
   * Returns the margins of all matrices of masked ones as one tensor, NaN where the guard forbids the
   * step; undefined without any.
   */
  static update(updates: readonly Update[], rule: UpdateRule): Tensor | undefined {
    const given = updates.filter((update): update is Given => update.gradient !== undefined);
    const others = given.filter(({ parameter }) => !parameter.masked);
    Parameter.#step(others, rule);
    for (const { parameter } of others) parameter.keepAway(rule.matrices.floor);
    return Parameter.#stepMasked(
      given.filter(({ parameter }) => parameter.masked),
      rule,
    );
  }

  static #step(updates: readonly Given[], { control, weightDecay }: UpdateRule): void {
    for (const full of new Set(updates.map(({ rate }) => rate))) {
      const { leading, lr, step } = controlled(control, full);
      const inputs = updates
        .filter(({ rate }) => rate === full)
        .flatMap(({ parameter: p, gradient }) => [p.value, gradient, p.#m, p.#v]);
      const params = { ...ADAM, lr, weight_decay: weightDecay, step };
      invoke("adam", [...leading, ...inputs], params);
    }
  }

  static #stepMasked(updates: readonly Given[], rule: UpdateRule): Tensor | undefined {
    const [first] = updates;
    if (!first) return undefined;
    const { control, weightDecay, matrices } = rule;
    const count = ({ parameter: { value } }: Given): number => value.shape[0] as number;
    const matrixCount = updates.reduce((sum, update) => sum + count(update), 0);
    const margins = Tensor.empty([matrixCount], "f32", first.parameter.value.device);
    let at = 0;
    for (const update of updates) {
      const { parameter: p, gradient, rate } = update;
      const { leading, lr, step } = controlled(control, rate);
      const { sf, band } = matrices.maskOf(p.value.shape.at(-1) as number);
      const mask = { sf, band, limit: matrices.dominance, floor: p.#raisedTo(matrices.floor) };
      const params = { ...ADAM, lr, weight_decay: weightDecay, step, ...mask };
      const own = margins.view(at, [count(update)]);
      const { tensor, rounded } = p.#shown ?? {};
      const inputs = [...leading, p.value, gradient, p.#m, p.#v, tensor, rounded];
      invokeOne("masked_adam", inputs, params, own).dispose();
      own.dispose();
      at += count(update);
    }
    return margins;
  }

  /** Raises magnitudes below `floor` to it, zeros and shifts excepted. */
  keepAway(floor: number): void {
    const limit = this.#raisedTo(floor);
    if (limit > 0) invoke("keep_away", [this.value], { limit });
  }

  #raisedTo(floor: number): number {
    return this.group === "transform" && !this.shift ? floor : 0;
  }

  dispose(): void {
    this.value.dispose();
    this.#m.dispose();
    this.#v.dispose();
    this.endSteps();
  }
}

/** A parameter, its gradient if it has one, and its full rate. */
export interface Update {
  readonly parameter: Parameter;
  readonly gradient: Tensor | undefined;
  readonly rate: number;
}

interface Given extends Update {
  readonly gradient: Tensor;
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
