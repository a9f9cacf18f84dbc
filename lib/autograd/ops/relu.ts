import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "relu",
  forward: (x) => ({ tensor: invokeOne("relu", [tensorOf(x, 0)]) }),
  backward: ({ g, output }) => [invokeOne("relu_grad", [output.tensor, g])],
};

/** max(x, 0), elementwise. */
export function relu(graph: Graph, x: Var): Var {
  return graph.apply(pair, [x], null);
}
