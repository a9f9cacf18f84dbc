import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "add",
  forward: (x) => ({ tensor: invokeOne("add", [tensorOf(x, 0), tensorOf(x, 1)], { alpha: 1 }) }),
  backward: ({ g }) => [g, g],
};

/** a + b, same shape. */
export function add(graph: Graph, a: Var, b: Var): Var {
  return graph.apply(pair, [a, b], null);
}
