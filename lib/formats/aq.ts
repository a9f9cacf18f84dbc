/**
 * Our own format, which holds all that a run has: docs/formats.md. For the linear's weight N
 *
 *     N.codes U8 [O, ceil(I b / 8)]   row o: bit stream of its codes
 *     N.scale F16 [O, G]
 *     N.zero  U8 [O, ceil(G b / 8)], or F32 [O, G] where a zero point is no code
 *
 * and of 4-bit floats N.codes U8 [O, I / 2], N.scale U8 [O, G], N.global F32 [1] in NVFP4.
 */

import * as path from "node:path";
import { AQ_CONFIG_NAME, aqConfigJson } from "../export/aq-config.ts";
import { hasGlobalScales } from "../quant/scheme.ts";
import { packageVersion } from "../util/package.ts";
import { writeFileAtomic } from "../util/unfinished-file.ts";
import { ChangeMeter } from "./change.ts";
import { codesTensor, scalesTensor, singleTensor } from "./floats.ts";
import { type Format, UNCHANGED } from "./format.ts";
import { bytesOf, packRowBytes } from "./pack.ts";
import { copiedOuter, copyCompanions, outerTensors, writeConfig } from "./packed-folder.ts";
import { shortsOf } from "./plain.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import { type PlannedTensor, writeShards } from "./shards.ts";

const FORMAT = 1;

function planLinear(run: FinishedRun, linear: StoredLinear): PlannedTensor[] {
  const { name, rows, columns, groups } = linear;
  const { scheme } = run.setting;
  if (scheme.numbers) {
    return [
      codesTensor(run, linear, `${name}.codes`),
      scalesTensor(run, linear, `${name}.scale`, "U8"),
      ...(hasGlobalScales(scheme)
        ? [singleTensor(`${name}.global`, [1], () => run.globalScale(linear))]
        : []),
    ];
  }
  const bits = scheme.wbits;
  const rowBytes = (count: number): number => Math.ceil((count * bits) / 8);
  // Read twice, since its dtype must be known before the file begins; it is small.
  const isWide = run.hasWideZeros(linear);
  const zeros: PlannedTensor = isWide
    ? {
        name: `${name}.zero`,
        dtype: "F32",
        shape: [rows, groups],
        pieces: () => [bytesOf(Float32Array.from(run.zeros(linear)))],
      }
    : {
        name: `${name}.zero`,
        dtype: "U8",
        shape: [rows, rowBytes(groups)],
        pieces: () => [packRowBytes(run.zeroCodes(linear, "aq"), rows, groups, bits)],
      };
  return [
    {
      name: `${name}.codes`,
      dtype: "U8",
      shape: [rows, rowBytes(columns)],
      pieces: () => [packRowBytes(run.codes(linear), rows, columns, bits)],
    },
    {
      name: `${name}.scale`,
      dtype: "F16",
      shape: [rows, groups],
      pieces: () => [bytesOf(run.scales(linear))],
    },
    zeros,
  ];
}

/** A linear that is not quantized, in the type that the model has for it. */
function planKept(
  run: FinishedRun,
  block: number,
  { name, shape }: { name: string; shape: readonly number[] },
  meter: ChangeMeter,
): PlannedTensor {
  const own = run.checkpoint.info(name).dtype;
  if (own !== "F16" && own !== "BF16") {
    return { name, dtype: "F32", shape, pieces: () => [bytesOf(run.plain(block, name, shape))] };
  }
  const pieces = (): Uint8Array[] => [shortsOf(run.plain(block, name, shape), name, meter, own)];
  return { name, dtype: own, shape, pieces };
}

function planAll(run: FinishedRun, meter: ChangeMeter): PlannedTensor[] {
  const { model } = run;
  const outer = outerTensors(run);
  const tensors: PlannedTensor[] = outer.first.map(({ name }) => copiedOuter(run, name));
  for (let block = 0; block < model.shape.blocks; block++) {
    const linears = new Map(run.linears(block).map((linear) => [linear.name, linear]));
    const kept = run.setting.kept[block] ?? [];
    for (const { key, name, shape } of model.blockTensors(block)) {
      const linear = linears.get(name);
      if (linear) tensors.push(...planLinear(run, linear));
      else if (kept.includes(key)) tensors.push(planKept(run, block, { name, shape }, meter));
      else {
        const pieces = (): Uint8Array[] => [bytesOf(run.plain(block, name, shape))];
        tensors.push({ name, dtype: "F32", shape, pieces });
      }
    }
  }
  return [...tensors, ...outer.last.map(({ name }) => copiedOuter(run, name))];
}

export const aq: Format = {
  name: "aq",
  about: "our own, with all that a run has: aq-native",
  refuses: () => undefined,
  notes: () => [],
  async write(run, { dir, onTensor }) {
    const meter = new ChangeMeter();
    await writeShards(dir, planAll(run, meter), onTensor);
    copyCompanions(run, dir);
    const { wbits, groupSize, symmetric, numbers } = run.setting.scheme;
    const json = aqConfigJson(run.config, packageVersion());
    writeFileAtomic(path.join(dir, AQ_CONFIG_NAME), `${JSON.stringify(json, null, 2)}\n`);
    writeConfig(run, dir, {
      ...run.checkpoint.config,
      quantization_config: {
        quant_method: "aq",
        format: FORMAT,
        bits: wbits,
        group_size: groupSize,
        symmetric,
        ...(numbers ? { numbers } : {}),
      },
    });
    return { change: UNCHANGED, otherChange: meter.changeOrNull, notes: [] };
  },
};
