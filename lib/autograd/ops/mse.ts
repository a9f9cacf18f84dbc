import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "mse",
  forward: (x) => ({
    tensor: invokeOne("mse", [tensorOf(x, 0), tensorOf(x, 1), x[2]?.tensor]),
  }),
  backward: ({ g, inputs }) => [
    invokeOne("mse_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g, inputs[2]?.tensor]),
    undefined,
    undefined,
  ],
};

/**
 * Mean squared error over all elements, plus that against a second target if there is one; the
 * targets get no gradient.
 */
export function mse(graph: Graph, y: Var, target: Var, second?: Var): Var {
  return graph.apply(pair, [y, target, second], null);
}
