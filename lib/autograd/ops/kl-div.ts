import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "kl_div",
  forward: (x) => ({ tensor: invokeOne("kl_div", [tensorOf(x, 0), tensorOf(x, 1)]) }),
  backward: ({ g, inputs }) => [
    invokeOne("kl_div_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g]),
    undefined,
  ],
};

/**
 * Mean over rows of KL(softmax(targets) || softmax(logits)), both [M, V] logits; the targets get no
 * gradient.
 */
export function klDiv(graph: Graph, logits: Var, targets: Var): Var {
  return graph.apply(pair, [logits, targets], null);
}
