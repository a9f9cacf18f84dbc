/**
 * Matrices S [B, D, D] as a block uses them: A = S o M under the gradual mask, and, where products read
 * them rounded, that in bf16 too. They are learned by the gradient of A, and the step that changes S
 * brings A up to date, so that nothing but a new mask costs passes of their own.
 */

import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { keep } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";

export class MaskedMatrices {
  /** A. */
  readonly tensor: Tensor;
  /** A in the type of the products. */
  readonly rounded: Tensor | undefined;
  #mask: Mask | undefined;

  /** Of matrices like these, without their numbers yet. */
  constructor({ shape, dtype, device }: Tensor, isMultiplied: boolean) {
    this.tensor = keep(Tensor.empty(shape, dtype, device));
    const isRounded = isMultiplied && precisionOf(device) === "bf16";
    this.rounded = isRounded ? keep(Tensor.empty(shape, "bf16", device)) : undefined;
  }

  /** Makes A of `matrices` where the mask is another than the last time. */
  show(matrices: Tensor, mask: Mask): void {
    const { band, sf } = mask;
    if (this.#mask?.band === band && this.#mask.sf === sf) return;
    invokeOne("gradual_mask", [matrices], { band, sf }, this.tensor).dispose();
    if (this.rounded) {
      const params = { dtype: dtypeCode("bf16") };
      invokeOne("cast", [this.tensor], params, this.rounded).dispose();
    }
    this.#mask = { band, sf };
  }

  dispose(): void {
    this.tensor.dispose();
    this.rounded?.dispose();
  }
}
