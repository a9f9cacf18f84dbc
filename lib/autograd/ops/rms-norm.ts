import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { columnSums } from "./linear.ts";

const pair: OpPair<number> = {
  name: "rms_norm",
  forward: (x, eps) => {
    const inputs = [tensorOf(x, 0), tensorOf(x, 1), x[2]?.tensor];
    const [tensor, rstd] = invoke("rms_norm", inputs, { eps }) as [Tensor, Tensor];
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
    const gb = needs[2] ? columnSums(g, tensorOf(inputs, 2)) : undefined;
    return [needs[0] ? gx : undefined, needs[1] ? gw : undefined, gb];
  },
};

/** x / sqrt(mean x^2 + eps) * w + b over the last dimension; no model has a b, but a shift makes one. */
export function rmsNorm(graph: Graph, x: Var, w: Var, eps: number, b?: Var): Var {
  return graph.apply(pair, [x, w, b], eps);
}
