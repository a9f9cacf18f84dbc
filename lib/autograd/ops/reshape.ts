import { dtypeCode } from "../../tensor/dtype.ts";
import { invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

const pair: OpPair<readonly number[]> = {
  name: "reshape",
  forward: (x, shape) => ({ tensor: tensorOf(x, 0).reshape(shape) }),
  backward: ({ g, inputs }) => {
    // A copy: g may be another value's gradient too, and what is returned here may be added to. In the
    // type of x, since what is behind may hand on 16 bits and what is in front may be no linear.
    const { dtype, shape } = tensorOf(inputs, 0);
    const copy = invokeOne("cast", [g], { dtype: dtypeCode(dtype) });
    const result = copy.reshape(shape);
    copy.dispose();
    return [result];
  },
};

/** The same elements under another shape. */
export function reshape(graph: Graph, x: Var, shape: readonly number[]): Var {
  return graph.apply(pair, [x], shape);
}
