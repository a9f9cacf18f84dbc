/** The schedule of the gradual mask: how far from the diagonal entries count in an epoch. */

import type { Mask } from "../autograd/ops/gradual-mask.ts";
import { AqError } from "../errors.ts";

/**
 * The mask of epoch `epoch` of `epochs` for D x D matrices: ceil(D (epoch+1) / epochs) off-diagonals
 * count, with the stability factor `sf`. Off-diagonals so learn from the first epoch on, and all of
 * them in the last.
 *
 * Throws: AQ_ARG if the epoch is outside.
 * Source: AffineQuant, eq. 6; the published code's band starts one lower and divides by zero for one
 * epoch.
 */
export function maskOfEpoch(epoch: number, epochs: number, headDim: number, sf: number): Mask {
  if (!Number.isInteger(epoch) || epoch < 0 || epoch >= epochs) {
    throw new AqError("AQ_ARG", `epoch must be from 0 to ${epochs - 1}, got ${epoch}`);
  }
  return { band: Math.ceil((headDim * (epoch + 1)) / epochs), sf };
}
