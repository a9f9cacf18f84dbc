import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "scale_weight",
  forward: ([w, r, c]) => ({
    tensor: invokeOne("scale_weight", [w?.tensor, r?.tensor, c?.tensor]),
  }),
  backward: ({ g, inputs, needs }) => {
    const [, r, c] = inputs;
    const gw = needs[0] ? invokeOne("scale_weight", [g, r?.tensor, c?.tensor]) : undefined;
    if (!needs[1] && !needs[2]) return [gw, undefined, undefined];
    const [gr, gc] = invoke("scale_weight_grad", [tensorOf(inputs, 0), r?.tensor, c?.tensor, g]);
    return [gw, unlessNeeded(gr, needs[1]), unlessNeeded(gc, needs[2])];
  },
};

function unlessNeeded<T extends { dispose(): void }>(
  tensor: T | undefined,
  needed: boolean | undefined,
): T | undefined {
  if (needed) return tensor;
  tensor?.dispose();
  return undefined;
}

/** diag(r) W diag(c), with W [O, I], r [O] and c [I]; an absent factor is the identity. */
export function scaleWeight(
  graph: Graph,
  w: Var,
  scales: { rows?: Var | undefined; columns?: Var | undefined },
): Var {
  return graph.apply(pair, [w, scales.rows, scales.columns], null);
}
