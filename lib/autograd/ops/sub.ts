import { invoke, invokeOne } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

/** -g, added to a gradient that is there already. g - 2 g is exact. */
function negated(g: Tensor, existing: Tensor | undefined): Tensor {
  if (!existing) return invokeOne("add", [g, g], { alpha: -2 });
  invoke("axpy", [existing, g], { alpha: -1 });
  return existing;
}

const pair: OpPair<null> = {
  name: "sub",
  forward: (x) => ({
    tensor: invokeOne("add", [tensorOf(x, 0), tensorOf(x, 1)], { alpha: -1 }),
  }),
  backward: ({ g, needs, existing }) => [g, needs[1] ? negated(g, existing[1]) : undefined],
};

/** a - b, same shape. */
export function sub(graph: Graph, a: Var, b: Var): Var {
  return graph.apply(pair, [a, b], null);
}
