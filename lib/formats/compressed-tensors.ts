/**
 * compressed-tensors; 4-bit floats are in compressed-floats.ts. Weights alone are "pack-quantized": signed codes with 2^(b-1) added, which are our
 * codes, as bit streams along the rows; with activations they are "int-quantized", one to a byte.
 *
 *     weight_packed I32 [O, ceil(I b / 32)], weight_scale F16 [O, G], weight_shape I64 [2] = O, I
 *     weight_zero_point I32 [ceil(O b / 32), G]   column g: bit stream over the rows; asymmetric alone
 *     weight I8 [O, I] = q - 2^(b-1)              int-quantized, symmetric alone
 */

import { isRunTime } from "../export/aq-config.ts";
import { type QuantScheme, quantizesTokens, schemeName } from "../quant/scheme.ts";
import type { JsonObject } from "../util/json.ts";
import { floatConfig, planFloats } from "./compressed-floats.ts";
import { ownShortType } from "./floats.ts";
import type { Format } from "./format.ts";
import { firstReason, refusesAdditions, refusesShortGroups } from "./limits.ts";
import { bytesOf, packRows, streamWords, transposed } from "./pack.ts";
import { type PackedLayout, writePacked } from "./packed-folder.ts";
import { planResidues, refusesResidues, residueConfig } from "./residues.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { isMidpoint, keptNames, type Setting } from "./setting.ts";
import type { PlannedTensor } from "./shards.ts";

const NAME = "compressed-tensors";

/** Widths of weights and activations that loaders multiply as integers. */
const INTEGER: readonly string[] = ["W8A8", "W4A8", "W4A4"];

function planPacked(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { prefix, rows, columns, groups } = linear;
  const { scheme } = run.setting;
  const bits = scheme.wbits;
  const zeros: PlannedTensor = {
    name: `${prefix}.weight_zero_point`,
    dtype: "I32",
    shape: [streamWords(rows, bits), groups],
    pieces: () => {
      const packed = packRows(
        transposed(run.zeroCodes(linear, NAME), rows, groups),
        groups,
        rows,
        bits,
      );
      return [bytesOf(transposed(packed, groups, streamWords(rows, bits)))];
    },
  };
  return [
    {
      name: `${prefix}.weight_packed`,
      dtype: "I32",
      shape: [rows, streamWords(columns, bits)],
      pieces: () => [bytesOf(packRows(run.codes(linear), rows, columns, bits))],
    },
    scalesOf(run, linear),
    ...(isMidpoint(scheme) ? [] : [zeros]),
    {
      name: `${prefix}.weight_shape`,
      dtype: "I64",
      shape: [2],
      pieces: () => [bytesOf(BigInt64Array.of(BigInt(rows), BigInt(columns)))],
    },
  ];
}

function planIntegers(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { prefix, rows, columns } = linear;
  const middle = 2 ** (run.setting.scheme.wbits - 1);
  return [
    {
      name: `${prefix}.weight`,
      dtype: "I8",
      shape: [rows, columns],
      pieces: () => {
        // In place: a code less the middle is the same byte, signed.
        const codes = run.codes(linear);
        for (let i = 0; i < codes.length; i++) codes[i] = (codes[i] as number) - middle;
        return [codes];
      },
    },
    scalesOf(run, linear),
  ];
}

function scalesOf(run: FinishedRun, linear: StoredLinear): PlannedTensor {
  return {
    name: `${linear.prefix}.weight_scale`,
    dtype: "F16",
    shape: [linear.rows, linear.groups],
    pieces: () => [bytesOf(run.scales(linear))],
  };
}

/** Keys that every release since 2024 reads, and no later ones: readers refuse what they do not know. */
function integerConfig(scheme: QuantScheme): JsonObject {
  const { wbits, abits, groupSize } = scheme;
  const isInteger = quantizesTokens(scheme);
  const weights: JsonObject = {
    num_bits: wbits,
    type: "int",
    symmetric: isMidpoint(scheme),
    strategy: groupSize ? "group" : "channel",
    group_size: groupSize || null,
    dynamic: false,
    block_structure: null,
    actorder: null,
    observer: "minmax",
    observer_kwargs: {},
  };
  const activations: JsonObject = {
    num_bits: abits,
    type: "int",
    symmetric: false,
    strategy: "token",
    group_size: null,
    dynamic: true,
    block_structure: null,
    actorder: null,
    observer: null,
    observer_kwargs: {},
  };
  return {
    format: isInteger ? "int-quantized" : "pack-quantized",
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights,
        input_activations: isInteger ? activations : null,
        output_activations: null,
      },
    },
  };
}

function configOf(setting: Setting): JsonObject {
  const { scheme } = setting;
  return {
    quant_method: NAME,
    quantization_status: "compressed",
    global_compression_ratio: null,
    kv_cache_scheme: null,
    ignore: ["lm_head", ...keptNames(setting)],
    ...(scheme.numbers ? floatConfig(scheme, scheme.numbers) : integerConfig(scheme)),
  };
}

function refuses(setting: Setting): string | undefined {
  const { scheme, added } = setting;
  if (scheme.numbers) return refusesAdditions(NAME, setting);
  return firstReason(
    added.some(isRunTime) ? refusesResidues(NAME, setting) : refusesAdditions(NAME, setting),
    quantizesTokens(scheme) ? refusesIntegers(setting) : undefined,
    refusesShortGroups(NAME, setting),
  );
}

function refusesIntegers({ scheme, tokenClips }: Setting): string | undefined {
  const { wbits, abits } = scheme;
  if (!INTEGER.includes(`W${wbits}A${abits}`)) {
    return `${NAME} multiplies ${INTEGER.join(", ")} as integers, and this run is W${wbits}A${abits}; use one of them, or write aq`;
  }
  if (!isMidpoint(scheme)) {
    return `${NAME} multiplies integers with weight grids symmetric about zero alone; quantize with --symmetric, or write aq`;
  }
  if (wbits === 8 && scheme.groupSize) {
    return `${NAME} multiplies 8-bit integers with one scale for each channel; leave --group-size out, or write aq`;
  }
  if (abits < 8 && tokenClips) {
    return `${NAME} has no place for learned clipping of ${abits}-bit activations, nor for ${abits}-bit q, k and v; the nearest are --wbits 8 --abits 8 --symmetric, and --abits 16; aq carries this run`;
  }
  return undefined;
}

/** By the name of the scheme. */
const FLOAT_NOTES: Readonly<Record<string, readonly string[]>> = {
  NVFP4: [
    "vLLM quantizes activations on GPUs that multiply NVFP4 (Blackwell), and leaves them in 16 bits on others; SGLang loads this layout on Blackwell alone, and modelopt on others as well",
  ],
  MXFP4A16: ["vLLM on Blackwell quantizes the activations of this layout as well (issue 56770)"],
};

function notes(setting: Setting): readonly string[] {
  const { scheme, added, tokenClips } = setting;
  const { wbits, abits } = scheme;
  if (scheme.numbers) return FLOAT_NOTES[schemeName(scheme)] ?? [];
  const list: string[] = [];
  if (quantizesTokens(scheme)) {
    const clips = tokenClips ? ", without the learned clipping" : "";
    list.push(
      `loaders quantize what linears read to ${abits} bits, one scale for each token${clips}, and leave q, k and v as they are: perplexity differs from the run's`,
    );
    if (abits < 8) list.push("4-bit integer products need vLLM from mid-2026");
  } else if (![2, 4, 8].includes(wbits)) {
    list.push(
      `${wbits}-bit codes are packed without gaps, which compressed-tensors reads from 0.18 on, and vLLM from mid-2026`,
    );
  }
  if (added.some(isRunTime)) {
    list.push(
      "experimental: the matrices behind the norms are in transform_config, which vLLM applies before each linear, on one GPU",
    );
  }
  return list;
}

export const compressedTensors: Format = {
  name: NAME,
  about:
    "compressed-tensors, 2 to 8 bits, W8A8, W4A8, W4A4, NVFP4, MXFP4: vLLM, SGLang, transformers",
  refuses,
  notes,
  write(run, output) {
    const { setting } = run;
    const config = configOf(setting);
    if (setting.scheme.numbers) {
      const layout = { linear: planFloats, config, type: ownShortType(run) };
      return writePacked(run, layout, output, notes(setting));
    }
    const hasResidues = setting.added.some(isRunTime);
    const layout: PackedLayout = {
      linear: quantizesTokens(setting.scheme) ? planIntegers : planPacked,
      config: hasResidues ? { ...config, transform_config: residueConfig(run) } : config,
      ...(hasResidues ? { plain: planResidues } : {}),
    };
    return writePacked(run, layout, output, notes(setting));
  },
};
