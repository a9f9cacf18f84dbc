import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<number> = {
  name: "layer_norm",
  forward: (x, eps) => {
    const [tensor, mean, rstd] = invoke(
      "layer_norm",
      [tensorOf(x, 0), tensorOf(x, 1), tensorOf(x, 2)],
      { eps },
    ) as [Tensor, Tensor, Tensor];
    return { tensor, saved: [mean, rstd] };
  },
  backward: ({ g, inputs, saved, needs }) => {
    const gradients = invoke("layer_norm_grad", [
      tensorOf(inputs, 0),
      tensorOf(inputs, 1),
      saved[0],
      saved[1],
      g,
    ]);
    return gradients.map((gradient, i) => {
      if (needs[i]) return gradient;
      gradient.dispose();
      return undefined;
    });
  },
};

/** (x - mean) / sqrt(variance + eps) * w + b over the last dimension. */
export function layerNorm(graph: Graph, x: Var, w: Var, b: Var, eps: number): Var {
  return graph.apply(pair, [x, w, b], eps);
}
