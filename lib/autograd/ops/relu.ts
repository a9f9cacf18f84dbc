import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Var } from "../graph.ts";
import {
  isRounded,
  QuantizableVar,
  type RowCodes,
  rowCodes,
  waitsForQuantizer,
  wanted,
} from "../quantizable.ts";

const pair: OpPair<null> = {
  name: "relu",
  forward: (x) => ({ tensor: invokeOne("relu", [tensorOf(x, 0)]) }),
  backward: ({ g, output }) => [invokeOne("relu_grad", [output.tensor, g])],
};

const quantized: OpPair<RowCodes> = {
  name: "relu_operand",
  forward: ([x, clip], codes) => {
    const made = invoke("relu_operand", [x?.tensor, clip?.tensor], { ...codes });
    return rowCodes(made, codes.bits);
  },
  backward: ({ g, inputs: [x, clip], output, params, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const given = [x?.tensor, clip?.tensor, scale, zero, g];
    const made = invoke("relu_operand_grad", given, { ...params, bf16: isRounded(g) ? 1 : 0 });
    return wanted(made, needs);
  },
};

/** max(x, 0), elementwise. A quantizer behind it may become part of it. */
export function relu(graph: Graph, x: Var): Var {
  const make = (): Var => graph.apply(pair, [x], null);
  if (!waitsForQuantizer(graph, x)) return make();
  return new QuantizableVar([x], make, (clip, codes) => graph.apply(quantized, [x, clip], codes));
}
