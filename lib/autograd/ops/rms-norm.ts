import { invoke } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
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
import { columnSums } from "./linear.ts";

const pair: OpPair<number> = {
  name: "rms_norm",
  forward: (x, eps) => {
    const inputs = [tensorOf(x, 0), tensorOf(x, 1), x[2]?.tensor];
    const [tensor, rstd] = invoke("rms_norm", inputs, { eps }) as [Tensor, Tensor];
    return { tensor, saved: [rstd] };
  },
  backward: ({ g, inputs, saved, needs }) => {
    // In f32 gb is a product with ones, as that of a linear's bias.
    const isProduct = precisionOf(g.device) === "f32";
    const gradients = invoke(
      "rms_norm_grad",
      [tensorOf(inputs, 0), tensorOf(inputs, 1), saved[0], g],
      { need_gx: needs[0] ? 1 : 0, need_gb: needs[2] && !isProduct ? 1 : 0 },
    );
    const [gx, gw, gb] = wanted(gradients, [needs[0], needs[1], needs[2] && !isProduct]);
    return [gx, gw, needs[2] && isProduct ? columnSums(g, tensorOf(inputs, 2)) : gb];
  },
};

const quantized: OpPair<RowCodes & { readonly eps: number }> = {
  name: "rms_norm_operand",
  forward: (inputs, { eps, floor, bits }) => {
    const given = inputs.map((x) => x?.tensor);
    const [rstd, scale, zero, codes] = invoke("rms_norm_operand", given, {
      eps,
      floor,
      bits,
    }) as [Tensor, Tensor, Tensor, Tensor];
    return {
      tensor: codes,
      grid: { scale, zero, bits, group: 0, quantized: codes },
      saved: [rstd],
    };
  },
  backward: ({ g, inputs, output, saved, params: { floor, bits }, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const given = [...inputs.map((x) => x?.tensor), saved[0], scale, zero, g];
    const params = { floor, bits, need_gx: needs[0] ? 1 : 0 };
    return wanted(invoke("rms_norm_operand_grad", given, params), needs);
  },
};

const floats: OpPair<RowFloats & { readonly eps: number }> = {
  name: "rms_norm_fp4",
  forward: (inputs, { eps, ...to }) => {
    const given = inputs.map((x) => x?.tensor);
    return rowFloats(invoke("rms_norm_fp4", given, { eps, ...floatParams(to) }));
  },
  backward: (context) =>
    floatGradients("rms_norm_fp4_grad", context, { need_gx: context.needs[0] ? 1 : 0 }),
};

/**
 * x / sqrt(mean x^2 + eps) * w + b over the last dimension; no model has a b, but a shift makes one. A
 * quantizer behind it may become part of it.
 */
export function rmsNorm(graph: Graph, x: Var, w: Var, eps: number, b?: Var): Var {
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
