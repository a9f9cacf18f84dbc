/**
 * AWQ's gemm layout: 4-bit codes, eight columns to a word in an order of its own, zero points as they
 * are.
 *
 *     qweight I32 [I, O / 8], qzeros I32 [G, O / 8], scales F16 [G, O]
 */

import type { Format } from "./format.ts";
import {
  firstReason,
  refusesActivations,
  refusesAdditions,
  refusesBits,
  refusesFloats,
  refusesShapes,
  refusesShortGroups,
} from "./limits.ts";
import { bytesOf, packAwq, transposed } from "./pack.ts";
import { type PackedLayout, writePacked } from "./packed-folder.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { keptNames } from "./setting.ts";
import type { PlannedTensor } from "./shards.ts";

const NAME = "awq";

function planLinear(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { prefix, rows, columns, groups } = linear;
  return [
    {
      name: `${prefix}.qweight`,
      dtype: "I32",
      shape: [columns, rows / 8],
      pieces: () => [bytesOf(packAwq(run.codes(linear), rows, columns))],
    },
    {
      name: `${prefix}.qzeros`,
      dtype: "I32",
      shape: [groups, rows / 8],
      pieces: () => [bytesOf(packAwq(run.zeroCodes(linear, NAME), rows, groups))],
    },
    {
      name: `${prefix}.scales`,
      dtype: "F16",
      shape: [groups, rows],
      pieces: () => [bytesOf(transposed(run.scales(linear), rows, groups))],
    },
  ];
}

export const awq: Format = {
  name: NAME,
  about: "AWQ's gemm layout, 4 bits: vLLM, SGLang, transformers",
  refuses: (setting) =>
    firstReason(
      refusesAdditions(NAME, setting),
      refusesFloats(NAME, setting),
      refusesActivations(NAME, setting),
      refusesBits(NAME, setting, [4]),
      refusesShapes(setting, ({ key, out }) =>
        out % 8 === 0
          ? undefined
          : `${NAME} takes eight rows at a time, and ${key} has ${out}; write compressed-tensors or aq`,
      ),
      refusesShortGroups(NAME, setting),
    ),
  notes: () => [],
  write(run, output) {
    const { groupSize } = run.setting.scheme;
    const layout: PackedLayout = {
      linear: planLinear,
      config: {
        quant_method: "awq",
        version: "gemm",
        bits: 4,
        group_size: groupSize || -1,
        zero_point: true,
        modules_to_not_convert: ["lm_head", ...keptNames(run.setting)],
      },
    };
    return writePacked(run, layout, output, []);
  },
};
