import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "mul",
  forward: (x) => ({ tensor: invokeOne("mul", [tensorOf(x, 0), tensorOf(x, 1)], { alpha: 1 }) }),
  backward: ({ g, inputs, needs }) => [
    needs[0] ? invokeOne("mul", [g, tensorOf(inputs, 1)], { alpha: 1 }) : undefined,
    needs[1] ? invokeOne("mul", [g, tensorOf(inputs, 0)], { alpha: 1 }) : undefined,
  ],
};

/** Elementwise product, same shape. */
export function mul(graph: Graph, a: Var, b: Var): Var {
  return graph.apply(pair, [a, b], null);
}
