/** Which format a program loads, for each setting; docs/formats.md has the table. */

import type { Float4Name } from "../autograd/float4.ts";
import { AqError } from "../errors.ts";
import { isRunTime } from "../export/aq-config.ts";
import type { FormatName, TargetName } from "../export-types.ts";
import { quantizesTokens, schemeName } from "../quant/scheme.ts";
import type { Format } from "./format.ts";
import { formatOf } from "./registry.ts";
import { isMidpoint, type Setting, tornLinears } from "./setting.ts";

const MODELOPT: FormatName = "modelopt";

/** A format that the program may load, or why it does not although it is one of its own. */
interface Candidate {
  readonly format: FormatName;
  readonly unless?: string | undefined;
}

const TARGETS: Readonly<Record<TargetName, (setting: Setting) => readonly Candidate[]>> = {
  vllm: forVllm,
  sglang: forSglang,
  "tensorrt-llm": forTensorrt,
  transformers: forTransformers,
  "llama.cpp": () => [{ format: "gguf" }],
};

export const TARGET_NAMES: readonly TargetName[] = Object.keys(TARGETS) as TargetName[];

/** Group sizes that the kernels of servers are made for. */
const KERNEL_GROUPS: readonly number[] = [0, 32, 64, 128];

function groupsFit({ scheme }: Setting, program: string): string | undefined {
  if (scheme.numbers || KERNEL_GROUPS.includes(scheme.groupSize)) return undefined;
  return `${program} has kernels for groups of 32, 64 and 128 and for whole channels, and this run has groups of ${scheme.groupSize}`;
}

/** Servers run linears that read the same as one, quantized or not. */
function keepsWhole(setting: Setting, program: string): string | undefined {
  const torn = tornLinears(setting);
  if (!torn) return undefined;
  return `${program} runs ${torn.join(", ")} as one linear, and this run keeps some of them as they are; keep all of them or none`;
}

function forVllm(setting: Setting): readonly Candidate[] {
  const { scheme, added } = setting;
  const unless = keepsWhole(setting, "vLLM") ?? groupsFit(setting, "vLLM");
  if (scheme.numbers) return floatLayouts(scheme.numbers, unless);
  if (quantizesTokens(scheme) || added.some(isRunTime))
    return [{ format: "compressed-tensors", unless }];
  if (isMidpoint(scheme)) {
    const isGptq = scheme.wbits === 4 || scheme.wbits === 8;
    return [
      { format: "compressed-tensors", unless },
      ...(isGptq ? [{ format: "gptq" as const, unless }] : []),
    ];
  }
  if (scheme.wbits === 8) return [{ format: "compressed-tensors", unless }];
  if (scheme.wbits !== 4) {
    const reason = `vLLM loads asymmetric grids of 4 and 8 bits alone, and this run has ${scheme.wbits}; quantize with --symmetric, or write hf (dequantized), gptq_v2 or gguf for other loaders`;
    return [{ format: "compressed-tensors", unless: reason }];
  }
  // AWQ's kernels want groups; a whole channel is none to some of them.
  const order: FormatName[] = scheme.groupSize
    ? ["awq", "compressed-tensors"]
    : ["compressed-tensors", "awq"];
  return order.map((format) => ({ format, unless }));
}

/** Both layouts of NVFP4; MXFP4 has one. */
function floatLayouts(numbers: Float4Name, unless?: string): Candidate[] {
  const layouts: FormatName[] = ["compressed-tensors", ...(numbers === "nvfp4" ? [MODELOPT] : [])];
  return layouts.map((format) => ({ format, unless }));
}

function forSglang(setting: Setting): readonly Candidate[] {
  const { scheme, added } = setting;
  const unless = keepsWhole(setting, "SGLang") ?? groupsFit(setting, "SGLang");
  if (scheme.numbers === "nvfp4" && quantizesTokens(scheme)) {
    // It loads ModelOpt's layout before Blackwell as well, without quantized activations.
    return floatLayouts(scheme.numbers, unless).reverse();
  }
  if (scheme.numbers) {
    const reason =
      "SGLang loads NVFP4 with quantized activations alone; quantize with --scheme NVFP4";
    return [{ format: "compressed-tensors", unless: reason }];
  }
  if (added.some(isRunTime)) {
    const reason = "SGLang executes no transform_config, which this run needs";
    return [{ format: "compressed-tensors", unless: reason }];
  }
  if (quantizesTokens(scheme)) {
    const isWide = scheme.abits === 8 && scheme.wbits === 8;
    const reason = isWide ? unless : "SGLang multiplies integers of 8 bits alone";
    return [{ format: "compressed-tensors", unless: reason }];
  }
  switch (scheme.wbits) {
    case 4:
      return isMidpoint(scheme) || scheme.groupSize === 0
        ? [
            { format: "compressed-tensors", unless },
            { format: "awq", unless },
          ]
        : [
            { format: "awq", unless },
            { format: "compressed-tensors", unless },
          ];
    case 8:
      return [{ format: "compressed-tensors", unless }];
    default:
      return [
        { format: "gptq", unless },
        { format: "gptq_v2", unless },
      ];
  }
}

function forTensorrt(setting: Setting): readonly Candidate[] {
  const { scheme } = setting;
  const unless = keepsWhole(setting, "TensorRT-LLM");
  if (scheme.numbers === "mxfp4") {
    const reason = quantizesTokens(scheme)
      ? "TensorRT-LLM loads MXFP4 with activations in 16 bits alone; quantize with --scheme MXFP4A16 or NVFP4"
      : unless;
    return [{ format: "compressed-tensors", unless: reason }];
  }
  // It reads whole numbers in layouts of its own alone.
  return [{ format: MODELOPT, unless }];
}

function forTransformers({ scheme, added, model }: Setting): readonly Candidate[] {
  if (scheme.numbers) return [{ format: "compressed-tensors" }];
  const leavesOut = "transformers would leave out what this run does at run time";
  if (quantizesTokens(scheme) && scheme.abits < 8) {
    const isOwn = model.hadamardDown !== null || added.length > 0;
    return [{ format: "hf", unless: isOwn ? leavesOut : undefined }];
  }
  // It opens compressed-tensors and says nothing of the transform_config that it does not execute.
  if (added.some(isRunTime)) return [{ format: "compressed-tensors", unless: leavesOut }];
  if (scheme.wbits < 4) return [{ format: "gptq" }, { format: "gptq_v2" }];
  return [{ format: "compressed-tensors" }, { format: "awq" }, { format: "gptq_v2" }];
}

/**
 * The first format of the target that carries the setting.
 *
 * Throws: AQ_ARG for an unknown target, AQ_MODEL when none fits, with the reason and what is nearest.
 */
export function formatFor(target: string, setting: Setting): Format {
  const candidates = Object.hasOwn(TARGETS, target) ? TARGETS[target as TargetName] : undefined;
  if (!candidates) {
    throw new AqError(
      "AQ_ARG",
      `there is no target '${target}'; targets: ${TARGET_NAMES.join(", ")}`,
    );
  }
  const reasons: string[] = [];
  for (const { format: name, unless } of candidates(setting)) {
    const format = formatOf(name);
    const reason = unless ?? format.refuses(setting);
    if (reason === undefined) return format;
    reasons.push(reason);
  }
  const [reason = "no format of it fits"] = reasons;
  throw new AqError(
    "AQ_MODEL",
    `${target} loads no ${schemeName(setting.scheme)} run like this one: ${integerHint(setting) ?? reason}.`,
  );
}

/** 4-bit activations as we calibrate them are beyond every server. */
function integerHint({ scheme, tokenClips }: Setting): string | undefined {
  if (!quantizesTokens(scheme) || scheme.abits >= 8 || !tokenClips) return undefined;
  return `no server today has integer W${scheme.wbits}A${scheme.abits} with learned token clipping and ${scheme.abits}-bit q, k and v; nearest are --abits 8 --wbits 8 --symmetric (compressed-tensors), --abits 16 (weights alone), or format aq, which aq-native itself runs`;
}
