/** The schedule of the gradual mask: how far from the diagonal entries count in an epoch. */

import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { AqError } from "../errors.ts";

/**
 * The mask of epoch `epoch` of `epochs` for D x D matrices: ceil(D (epoch+1) / epochs) off-diagonals
 * count, with the stability factor `sf`. Off-diagonals so learn from the first epoch on, and all of
 * them in the last. The published rule is floor((D-1) / (epochs-1) epoch), with none in the first
 * epoch; where there is only one, in which the published code divides by zero, all count.
 *
 * Throws: AQ_ARG if the epoch is outside.
 * Source: AffineQuant, eq. 6, and its code.
 */
export function maskOfEpoch(
  epoch: number,
  epochs: number,
  size: number,
  sf: number,
  rule: "ours" | "published" = "ours",
): Mask {
  if (!Number.isInteger(epoch) || epoch < 0 || epoch >= epochs) {
    throw new AqError("AQ_ARG", `epoch must be from 0 to ${epochs - 1}, got ${epoch}`);
  }
  if (rule === "published") {
    const band = epochs > 1 ? Math.floor(((size - 1) / (epochs - 1)) * epoch) : size - 1;
    return { band, sf };
  }
  return { band: Math.ceil((size * (epoch + 1)) / epochs), sf };
}

/** The mask of square matrices of a size. */
export type MaskOf = (size: number) => Mask;
