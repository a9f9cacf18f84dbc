import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "silu_mul",
  forward: (x) => ({ tensor: invokeOne("silu_mul", [tensorOf(x, 0), tensorOf(x, 1)]) }),
  // What is in front of it are linears, whose products would round these gradients anyway.
  backward: ({ g, inputs }) =>
    invoke("silu_mul_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g], {
      bf16: g.dtype === "f32" && precisionOf(g.device) === "bf16" ? 1 : 0,
    }),
};

/** gate * sigmoid(gate) * up, elementwise: the middle of a SwiGLU MLP. */
export function siluMul(graph: Graph, gate: Var, up: Var): Var {
  return graph.apply(pair, [gate, up], null);
}
