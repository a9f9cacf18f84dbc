/**
 * NVFP4 as NVIDIA's Model Optimizer writes it, which TensorRT-LLM, vLLM and SGLang load.
 *
 *     weight U8 [O, I / 2], weight_scale F8_E4M3 [O, I / 16], weight_scale_2 F32 [] = 1 / g
 *     input_scale F32 [] = 1 / g of the input, where activations are quantized
 */

import { quantizesTokens, schemeName } from "../quant/scheme.ts";
import type { JsonObject } from "../util/json.ts";
import { packageVersion } from "../util/package.ts";
import { codesTensor, ownShortType, scalesTensor, singleTensor } from "./floats.ts";
import type { Format } from "./format.ts";
import { firstReason, refusesAdditions } from "./limits.ts";
import { type PackedLayout, writePacked } from "./packed-folder.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { keptNames, type Setting } from "./setting.ts";
import type { PlannedTensor } from "./shards.ts";

const NAME = "modelopt";

function planLinear(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { name, prefix } = linear;
  const inverse = (part: string, value: () => number): PlannedTensor =>
    singleTensor(`${prefix}.${part}`, [], () => 1 / value());
  return [
    codesTensor(run, linear, name),
    scalesTensor(run, linear, `${prefix}.weight_scale`, "F8_E4M3"),
    inverse("weight_scale_2", () => run.globalScale(linear)),
    ...(quantizesTokens(run.setting.scheme)
      ? [inverse("input_scale", () => run.inputGlobal(linear))]
      : []),
  ];
}

/** hf_quant_config.json, and the same in the words of config.json. */
function configsOf(setting: Setting): { file: JsonObject; config: JsonObject } {
  const { scheme } = setting;
  const algorithm = quantizesTokens(scheme) ? "NVFP4" : "W4A16_NVFP4";
  const producer = { name: "aq-native", version: packageVersion() };
  const excluded = ["lm_head", ...keptNames(setting)];
  const args = { dynamic: false, num_bits: 4, type: "float", group_size: scheme.groupSize };
  return {
    file: {
      producer,
      quantization: {
        quant_algo: algorithm,
        kv_cache_quant_algo: null,
        group_size: scheme.groupSize,
        exclude_modules: excluded,
      },
    },
    config: {
      config_groups: {
        group_0: {
          ...(quantizesTokens(scheme) ? { input_activations: args } : {}),
          weights: args,
          targets: ["Linear"],
        },
      },
      group_size: scheme.groupSize,
      ignore: excluded,
      quant_algo: algorithm,
      producer,
      quant_method: NAME,
    },
  };
}

function refuses(setting: Setting): string | undefined {
  const { scheme } = setting;
  return firstReason(
    scheme.numbers === "nvfp4"
      ? undefined
      : `${NAME} holds NVFP4 alone, and this run is ${schemeName(scheme)}; quantize with --scheme NVFP4 or NVFP4A16, or write compressed-tensors`,
    refusesAdditions(NAME, setting),
  );
}

const NOTES: readonly string[] = [
  "ModelOpt's layout stores 1 / g in place of the global scale g, in float32 as well: the weights it stands for may differ in the last bit",
];

export const modelopt: Format = {
  name: NAME,
  about: "NVFP4 as NVIDIA's Model Optimizer writes it: TensorRT-LLM, vLLM, SGLang",
  refuses,
  notes: () => NOTES,
  write(run, output) {
    const { file, config } = configsOf(run.setting);
    const layout: PackedLayout = {
      linear: planLinear,
      config,
      type: ownShortType(run),
      files: { "hf_quant_config.json": file },
    };
    return writePacked(run, layout, output, NOTES);
  },
};
