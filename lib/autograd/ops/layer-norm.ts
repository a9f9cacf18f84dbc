import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Var } from "../graph.ts";
import {
  floatGradients,
  floatParams,
  QuantizableVar,
  type RowCodes,
  type RowFloats,
  rowFloats,
  waitsForQuantizer,
  wanted,
} from "../quantizable.ts";

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
    const [x, w] = [tensorOf(inputs, 0), tensorOf(inputs, 1)];
    return wanted(invoke("layer_norm_grad", [x, w, saved[0], saved[1], g]), needs);
  },
};

const quantized: OpPair<RowCodes & { readonly eps: number }> = {
  name: "layer_norm_operand",
  forward: (inputs, { eps, floor, bits }) => {
    const given = inputs.map((x) => x?.tensor);
    const [mean, rstd, scale, zero, codes] = invoke("layer_norm_operand", given, {
      eps,
      floor,
      bits,
    }) as [Tensor, Tensor, Tensor, Tensor, Tensor];
    const grid = { scale, zero, bits, group: 0, quantized: codes };
    return { tensor: codes, grid, saved: [mean, rstd] };
  },
  backward: ({ g, inputs, output, saved, params: { floor, bits }, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const given = [...inputs.map((x) => x?.tensor), ...saved, scale, zero, g];
    const params = { floor, bits, need_gx: needs[0] ? 1 : 0 };
    return wanted(invoke("layer_norm_operand_grad", given, params), needs);
  },
};

const floats: OpPair<RowFloats & { readonly eps: number }> = {
  name: "layer_norm_fp4",
  forward: (inputs, { eps, ...to }) => {
    const given = inputs.map((x) => x?.tensor);
    return rowFloats(invoke("layer_norm_fp4", given, { eps, ...floatParams(to) }));
  },
  backward: (context) =>
    floatGradients("layer_norm_fp4_grad", context, { need_gx: context.needs[0] ? 1 : 0 }),
};

/**
 * (x - mean) / sqrt(variance + eps) * w + b over the last dimension. A quantizer behind it may become part
 * of it.
 */
export function layerNorm(graph: Graph, x: Var, w: Var, b: Var, eps: number): Var {
  const inputs = [x, w, b];
  const make = (): Var => graph.apply(pair, inputs, eps);
  if (!waitsForQuantizer(graph, x)) return make();
  return new QuantizableVar(
    inputs,
    make,
    (clip, codes) => graph.apply(quantized, [...inputs, clip], { eps, ...codes }),
    {
      quantizeFloats: (global, of) => graph.apply(floats, [...inputs, global], { eps, ...of }),
    },
  );
}
