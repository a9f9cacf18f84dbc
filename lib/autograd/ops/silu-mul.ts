import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "silu_mul",
  forward: (x) => ({ tensor: invokeOne("silu_mul", [tensorOf(x, 0), tensorOf(x, 1)]) }),
  backward: ({ g, inputs }) =>
    invoke("silu_mul_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g]),
};

/** gate * sigmoid(gate) * up, elementwise: the middle of a SwiGLU MLP. */
export function siluMul(graph: Graph, gate: Var, up: Var): Var {
  return graph.apply(pair, [gate, up], null);
}
