import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "mse",
  forward: (x) => ({ tensor: invokeOne("mse", [tensorOf(x, 0), tensorOf(x, 1)]) }),
  backward: ({ g, inputs }) => [
    invokeOne("mse_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g]),
    undefined,
  ],
};

/** Mean squared error over all elements; the target gets no gradient. */
export function mse(graph: Graph, y: Var, target: Var): Var {
  return graph.apply(pair, [y, target], null);
}
