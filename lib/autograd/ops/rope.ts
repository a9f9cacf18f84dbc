import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<number> = {
  name: "rope",
  forward: (x, heads) => ({
    tensor: invokeOne("rope", [tensorOf(x, 0), tensorOf(x, 1), tensorOf(x, 2)], {
      heads,
      inverse: 0,
    }),
  }),
  backward: ({ g, inputs, params: heads }) => [
    invokeOne("rope", [g, tensorOf(inputs, 1), tensorOf(inputs, 2)], { heads, inverse: 1 }),
    undefined,
    undefined,
  ],
};

/** Rotary positions on x [B, T, heads*D], with tables cos and sin [T, D/2] (constants). */
export function rope(graph: Graph, x: Var, cos: Var, sin: Var, heads: number): Var {
  return graph.apply(pair, [x, cos, sin], heads);
}
