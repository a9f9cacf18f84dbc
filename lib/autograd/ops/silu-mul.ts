import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Var } from "../graph.ts";
import {
  floatGradients,
  floatParams,
  isRounded,
  QuantizableVar,
  type RowCodes,
  type RowFloats,
  rowCodes,
  rowFloats,
  waitsForQuantizer,
  wanted,
} from "../quantizable.ts";

const pair: OpPair<null> = {
  name: "silu_mul",
  forward: (x) => ({ tensor: invokeOne("silu_mul", [tensorOf(x, 0), tensorOf(x, 1)]) }),
  backward: ({ g, inputs }) =>
    invoke("silu_mul_grad", [tensorOf(inputs, 0), tensorOf(inputs, 1), g], {
      bf16: isRounded(g) ? 1 : 0,
    }),
};

const quantized: OpPair<RowCodes> = {
  name: "silu_mul_operand",
  forward: (inputs, { floor, bits }) => {
    const given = [tensorOf(inputs, 0), tensorOf(inputs, 1), inputs[2]?.tensor];
    const made = invoke("silu_mul_operand", given, { floor, bits });
    return rowCodes(made, bits);
  },
  backward: ({ g, inputs, output, params: { floor, bits }, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const given = [...inputs.map((x) => x?.tensor), scale, zero, g];
    const params = { floor, bits, bf16: isRounded(g) ? 1 : 0 };
    return wanted(invoke("silu_mul_operand_grad", given, params), needs);
  },
};

const floats: OpPair<RowFloats> = {
  name: "silu_mul_fp4",
  forward: (inputs, to) => {
    const given = inputs.map((x) => x?.tensor);
    return rowFloats(invoke("silu_mul_fp4", given, floatParams(to)));
  },
  backward: (context) =>
    floatGradients("silu_mul_fp4_grad", context, { bf16: isRounded(context.g) ? 1 : 0 }),
};

/**
 * gate * sigmoid(gate) * up, elementwise: the middle of a SwiGLU MLP. A quantizer behind it may become
 * part of it.
 */
export function siluMul(graph: Graph, gate: Var, up: Var): Var {
  const make = (): Var => graph.apply(pair, [gate, up], null);
  if (!waitsForQuantizer(graph, gate)) return make();
  return new QuantizableVar(
    [gate, up],
    make,
    (clip, codes) => graph.apply(quantized, [gate, up, clip], codes),
    { quantizeFloats: (global, of) => graph.apply(floats, [gate, up, global], of) },
  );
}
