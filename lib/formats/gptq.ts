/**
 * GPTQ, as AutoGPTQ began it and GPTQModel goes on with it. Version 1 stores zero points less one, so
 * that it has no place for 0; version 2 stores them as they are.
 *
 *     qweight I32 [I b / 32, O]   column o: bit stream of the codes of row o
 *     qzeros  I32 [G, O b / 32]   row g: bit stream of the group's zero points
 *     scales  F16 [G, O], g_idx I32 [I]
 */

import type { FormatName } from "../export-types.ts";
import type { JsonObject } from "../util/json.ts";
import { packageVersion } from "../util/package.ts";
import type { Format } from "./format.ts";
import {
  firstReason,
  refusesActivations,
  refusesAdditions,
  refusesBits,
  refusesFloats,
  refusesShapes,
} from "./limits.ts";
import { bytesOf, packRows, streamWords, transposed } from "./pack.ts";
import { type PackedLayout, writePacked } from "./packed-folder.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { isMidpoint, keptNames, type Setting } from "./setting.ts";
import type { PlannedTensor } from "./shards.ts";

const BITS = [2, 3, 4, 8] as const;

/** Zero points as the file holds them. */
export function storedZeros(zeros: Uint8Array, version: 1 | 2): Uint8Array {
  return version === 1 ? zeros.map((z) => z - 1) : zeros;
}

function planLinear(run: FinishedRun, linear: StoredLinear, name: FormatName): PlannedTensor[] {
  const { prefix, rows, columns, groups, group } = linear;
  const bits = run.setting.scheme.wbits;
  const words = streamWords(columns, bits);
  const version = name === "gptq" ? 1 : 2;
  return [
    {
      name: `${prefix}.qweight`,
      dtype: "I32",
      shape: [words, rows],
      pieces: () => [
        bytesOf(transposed(packRows(run.codes(linear), rows, columns, bits), rows, words)),
      ],
    },
    {
      name: `${prefix}.qzeros`,
      dtype: "I32",
      shape: [groups, streamWords(rows, bits)],
      pieces: () => {
        const zeros = storedZeros(run.zeroCodes(linear, name), version);
        return [bytesOf(packRows(transposed(zeros, rows, groups), groups, rows, bits))];
      },
    },
    {
      name: `${prefix}.scales`,
      dtype: "F16",
      shape: [groups, rows],
      pieces: () => [bytesOf(transposed(run.scales(linear), rows, groups))],
    },
    {
      name: `${prefix}.g_idx`,
      dtype: "I32",
      shape: [columns],
      pieces: () => [
        bytesOf(Int32Array.from({ length: columns }, (_, i) => Math.floor(i / group))),
      ],
    },
  ];
}

function configOf(name: FormatName, setting: Setting): JsonObject {
  const { scheme } = setting;
  const kept = keptRules(setting);
  return {
    quant_method: "gptq",
    bits: scheme.wbits,
    group_size: scheme.groupSize || -1,
    desc_act: false,
    sym: isMidpoint(scheme),
    lm_head: false,
    ...(Object.keys(kept).length > 0 ? { dynamic: kept } : {}),
    checkpoint_format: name,
    format: name,
    method: "gptq",
    pack_dtype: "int32",
    true_sequential: true,
    meta: { quantizer: [`aq-native:${packageVersion()}`] },
  };
}

/** What vLLM calls linears that it runs as one. */
const FUSED: Readonly<Record<string, string>> = { q: "qkv_proj", gate: "gate_up_proj" };

/**
 * Rules that leave linears out, as GPTQModel writes them: patterns of names that begin with "-:". vLLM
 * asks for the names of linears that it runs as one, so that those are there as well.
 */
function keptRules(setting: Setting): JsonObject {
  const { model, kept } = setting;
  const fused = kept.flatMap((keys, block) => {
    const names = new Map(model.blockTensors(block).map(({ key, name }) => [key, name]));
    return model.residual.reads.flatMap(({ consumers: [first = "", ...others] }) => {
      const own = FUSED[first];
      const isWhole = own !== undefined && [first, ...others].every((key) => keys.includes(key));
      return isWhole ? [(names.get(first) ?? "").replace(/[^.]+\.weight$/, own)] : [];
    });
  });
  const all = [...keptNames(setting), ...fused];
  return Object.fromEntries(all.map((name) => [`-:^${name.replaceAll(".", "\\.")}$`, {}]));
}

function refuses(name: FormatName, setting: Setting): string | undefined {
  const { scheme } = setting;
  return firstReason(
    refusesAdditions(name, setting),
    refusesFloats(name, setting),
    refusesActivations(name, setting),
    refusesBits(name, setting, BITS),
    name === "gptq" && !isMidpoint(scheme)
      ? "gptq stores zero points less one, so that an asymmetric grid's 0 has no place in it; write gptq_v2, or quantize with --symmetric"
      : undefined,
    refusesShapes(setting, ({ key, out, in: columns }) =>
      (out * scheme.wbits) % 32 === 0 && (columns * scheme.wbits) % 32 === 0
        ? undefined
        : `${name} fills words of 32 bits, and ${key} of ${out} x ${columns} weights of ${scheme.wbits} bits does not; write compressed-tensors or aq`,
    ),
  );
}

function format(name: "gptq" | "gptq_v2", about: string): Format {
  return {
    name,
    about,
    refuses: (setting) => refuses(name, setting),
    notes: () => [],
    write(run, output) {
      const config = configOf(name, run.setting);
      const layout: PackedLayout = {
        linear: (from, linear) => planLinear(from, linear, name),
        config,
        files: { "quantize_config.json": config },
      };
      return writePacked(run, layout, output, []);
    },
  };
}

export const gptq: Format = format(
  "gptq",
  "GPTQ version 1, symmetric: GPTQModel, transformers, vLLM at 4 and 8 bits",
);

export const gptqV2: Format = format("gptq_v2", "GPTQ version 2: GPTQModel, transformers");
