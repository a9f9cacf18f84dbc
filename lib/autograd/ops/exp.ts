import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<number> = {
  name: "exp",
  forward: (x, scale) => ({ tensor: invokeOne("exp", [tensorOf(x, 0)], { scale }) }),
  backward: ({ g, output, params: scale }) => [
    invokeOne("mul", [g, output.tensor], { alpha: scale }),
  ],
};

/** e^(scale x); scale -1 gives the reciprocal of e^x. */
export function exp(graph: Graph, x: Var, scale = 1): Var {
  return graph.apply(pair, [x], scale);
}
