import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

/** A band of the gradual mask: off-diagonals up to `band` count with factor `sf`. */
export interface Mask {
  readonly band: number;
  readonly sf: number;
}

const pair: OpPair<Mask> = {
  name: "gradual_mask",
  forward: (x, { band, sf }) => ({
    tensor: invokeOne("gradual_mask", [tensorOf(x, 0)], { band, sf }),
  }),
  backward: ({ g, params: { band, sf } }) => [invokeOne("gradual_mask", [g], { band, sf })],
};

/** S o M for S [B, D, D]: 1 on the diagonal, sf within the band, 0 outside. Source: AffineQuant, eq. 6. */
export function gradualMask(graph: Graph, s: Var, mask: Mask): Var {
  return graph.apply(pair, [s], mask);
}
