import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<null> = {
  name: "reciprocal",
  forward: (inputs) => {
    const x = tensorOf(inputs, 0);
    const inverses = invokeOne("lu_inverse", [x.reshape([x.size, 1, 1]), undefined], { pivot: 0 });
    const tensor = inverses.reshape(x.shape);
    inverses.dispose();
    return { tensor };
  },
  backward: ({ g, output: { tensor: y } }) => {
    const gy = invokeOne("mul", [g, y], { alpha: 1 });
    const result = invokeOne("mul", [gy, y], { alpha: -1 });
    gy.dispose();
    return [result];
  },
};

/** 1 / x elementwise, as inverses of 1 x 1 matrices. Throws: AQ_NUMERIC where x is 0. */
export function reciprocal(graph: Graph, x: Var): Var {
  return graph.apply(pair, [x], null);
}
