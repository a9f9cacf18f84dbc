import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<number> = {
  name: "rms_norm",
  forward: (x, eps) => {
    const [tensor, rstd] = invoke("rms_norm", [tensorOf(x, 0), tensorOf(x, 1)], { eps }) as [
      Tensor,
      Tensor,
    ];
    return { tensor, saved: [rstd] };
  },
  backward: ({ g, inputs, saved, needs }) => {
    const [gx, gw] = invoke("rms_norm_grad", [
      tensorOf(inputs, 0),
      tensorOf(inputs, 1),
      saved[0],
      g,
    ]);
    if (!needs[0]) gx?.dispose();
    if (!needs[1]) gw?.dispose();
    return [needs[0] ? gx : undefined, needs[1] ? gw : undefined];
  },
};

/** x / sqrt(mean x^2 + eps) * w over the last dimension. */
export function rmsNorm(graph: Graph, x: Var, w: Var, eps: number): Var {
  return graph.apply(pair, [x, w], eps);
}
