/**
 * Our own format. For the linear's weight N: `N.codes` U8, a bit stream of codes for each row, to whole
 * bytes; `N.scale` F16 [O, G]; `N.zero`, U8 streams of zeros like the codes, or F32 [O, G] where a grid of
 * the published recipes has zeros that are no codes.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { TensorSpec } from "../models/family.ts";
import { unpackBytes } from "./bit-stream.ts";
import type { OwnConfig } from "./config.ts";
import { groupCount, type PackedIntegers } from "./linear.ts";
import { checkPart, misfit, readRaw, readScales } from "./parts.ts";

/** Names of the tensors of a linear, by its `x.weight`. */
export function ownParts(weight: string): Record<"codes" | "scales" | "zeros", string> {
  return { codes: `${weight}.codes`, scales: `${weight}.scale`, zeros: `${weight}.zero` };
}

/** Throws: AQ_MODEL, AQ_FORMAT when the tensors are not those of such a linear. */
export function planOwn(
  checkpoint: Checkpoint,
  config: OwnConfig,
  spec: TensorSpec,
): { readonly group: number; readonly groups: number } {
  const names = ownParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const group = Math.min(columns, config.group || columns);
  const groups = groupCount(columns, group);
  const streamBytes = (count: number): number => Math.ceil((count * config.bits) / 8);
  checkPart(checkpoint, names.codes, ["U8"], [rows, streamBytes(columns)]);
  checkPart(checkpoint, names.scales, ["F16"], [rows, groups]);
  const isWide = checkpoint.info(names.zeros).dtype === "F32";
  checkPart(
    checkpoint,
    names.zeros,
    [isWide ? "F32" : "U8"],
    [rows, isWide ? groups : streamBytes(groups)],
  );
  return { group, groups };
}

/** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
export function readOwn(
  checkpoint: Checkpoint,
  config: OwnConfig,
  spec: TensorSpec,
): PackedIntegers {
  const { group, groups } = planOwn(checkpoint, config, spec);
  const names = ownParts(spec.name);
  const [rows, columns] = spec.shape as [number, number];
  const { bits } = config;
  const scales = readScales(checkpoint, names.scales);
  const stream = (name: string, count: number): Uint8Array<ArrayBuffer> => {
    const values = unpackBytes(readRaw(checkpoint, name), bits, count, rows);
    if (!values) throw misfit(checkpoint, name, "zeros behind the last value", "ones");
    return values;
  };
  const isWide = checkpoint.info(names.zeros).dtype === "F32";
  const zero = isWide
    ? readScales(checkpoint, names.zeros, "zeros").values
    : Float32Array.from(stream(names.zeros, groups));
  return {
    kind: "integers",
    bits,
    rows,
    columns,
    group,
    codes: stream(names.codes, columns),
    scale: scales.values,
    zero,
    scaleType: scales.dtype,
    groupOf: null,
  };
}
