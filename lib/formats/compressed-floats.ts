/**
 * 4-bit floats in compressed-tensors: `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
 *
 *     weight_packed U8 [O, I / 2], weight_scale F8_E4M3 [O, I / 16], or U8 [O, I / 32] of MXFP4
 *     weight_global_scale F32 [1] = g, input_global_scale F32 [1] where activations are quantized; NVFP4
 */

import type { Float4Name } from "../autograd/float4.ts";
import { hasGlobalScales, type QuantScheme, quantizesTokens } from "../quant/scheme.ts";
import type { JsonObject } from "../util/json.ts";
import { codesTensor, scalesTensor, singleTensor } from "./floats.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import type { PlannedTensor } from "./shards.ts";

export function planFloats(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { prefix } = linear;
  const { scheme } = run.setting;
  const isNvfp4 = hasGlobalScales(scheme);
  const scaleType = isNvfp4 ? "F8_E4M3" : "U8";
  const tensors = [
    codesTensor(run, linear, `${prefix}.weight_packed`),
    scalesTensor(run, linear, `${prefix}.weight_scale`, scaleType),
  ];
  if (!isNvfp4) return tensors;
  const single = (name: string, value: () => number): number =>
    tensors.push(singleTensor(`${prefix}.${name}`, [1], value));
  single("weight_global_scale", () => run.globalScale(linear));
  if (quantizesTokens(scheme)) single("input_global_scale", () => run.inputGlobal(linear));
  return tensors;
}

/** How the scales of a format are spread, and what they are stored as. */
const FORMATS: Readonly<Record<Float4Name, { strategy: string; scales: string }>> = {
  nvfp4: { strategy: "tensor_group", scales: "torch.float8_e4m3fn" },
  mxfp4: { strategy: "group", scales: "torch.uint8" },
};

/** The name of the format, and the schemes of weights and activations. */
export function floatConfig(scheme: QuantScheme, numbers: Float4Name): JsonObject {
  const { strategy, scales } = FORMATS[numbers];
  const args = {
    num_bits: 4,
    type: "float",
    symmetric: true,
    strategy,
    group_size: scheme.groupSize,
    block_structure: null,
    actorder: null,
    scale_dtype: scales,
    zp_dtype: scales,
    observer_kwargs: {},
  };
  // Of NVFP4 the scale of the whole input is fixed, and those of groups are made for each token.
  const inputs =
    numbers === "nvfp4"
      ? { ...args, dynamic: "local", observer: "static_minmax" }
      : { ...args, dynamic: true, observer: null };
  return {
    format: `${numbers}-pack-quantized`,
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights: { ...args, dynamic: false, observer: "minmax" },
        input_activations: quantizesTokens(scheme) ? inputs : null,
        output_activations: null,
      },
    },
  };
}
