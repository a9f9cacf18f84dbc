/**
 * A weight with factors of its rows and columns that are not multiplied in yet. Quantizers take the
 * factors along and apply them while they load the weight, so that on a GPU, where memory is what
 * limits them, the scaled copy and its gradient never exist. Whoever reads `value` gets the product.
 */

import type { Value, Var } from "./graph.ts";
import { InverseVar } from "./inverse.ts";
import { QuantizableVar } from "./quantizable.ts";

export class ScaledVar implements Var {
  readonly base: Var;
  readonly rows: Var | undefined;
  readonly columns: Var | undefined;
  readonly #multiply: (scaled: ScaledVar) => Var;
  #dense: Var | undefined;

  constructor(
    base: Var,
    { rows, columns }: { rows?: Var | undefined; columns?: Var | undefined },
    multiply: (scaled: ScaledVar) => Var,
  ) {
    this.base = base;
    this.rows = rows;
    this.columns = columns;
    this.#multiply = multiply;
  }

  /** The product, computed when it is first asked for. */
  get dense(): Var {
    this.#dense ??= this.#multiply(this);
    return this.#dense;
  }

  get value(): Value {
    return this.dense.value;
  }

  get needsGrad(): boolean {
    return [this.base, this.rows, this.columns].some((v) => v?.needsGrad);
  }
}

/** What an op works on that knows nothing of values that wait for their use. */
export function denseOf(v: Var): Var {
  const waits = v instanceof ScaledVar || v instanceof InverseVar || v instanceof QuantizableVar;
  return waits ? v.dense : v;
}
