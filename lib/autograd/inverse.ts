/**
 * The inverse of a matrix, which remembers of what: a product with it has a gradient of the matrix
 * that is one product of what the block has anyway, where the way through the inverse takes three
 * with matrices. Whoever reads `value` gets the inverse, and other ops the long way.
 */

import type { Value, Var } from "./graph.ts";

export class InverseVar implements Var {
  /** The matrix. */
  readonly of: Var;
  /** Its inverse, as a value without a gradient. */
  readonly constant: Var;
  readonly #invert: () => Var;
  #dense: Var | undefined;

  constructor(of: Var, constant: Var, invert: () => Var) {
    this.of = of;
    this.constant = constant;
    this.#invert = invert;
  }

  /** The inverse as an op on the matrix, made when it is first asked for. */
  get dense(): Var {
    this.#dense ??= this.#invert();
    return this.#dense;
  }

  get value(): Value {
    return this.constant.value;
  }

  get needsGrad(): boolean {
    return this.of.needsGrad;
  }
}
