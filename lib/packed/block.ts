/** The linears of a block that are multiplied as codes. */

import { FLOAT4_FORMATS } from "../autograd/float4.ts";
import type { Packed } from "../autograd/graph.ts";
import type { TensorSpec } from "../models/family.ts";
import { joinedKey } from "../models/joined.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type PackedFloats, scalesOf } from "./float4.ts";
import type { PackedIntegers, PackedLinear } from "./linear.ts";
import type { PackedWeights } from "./open.ts";

/** Most bits of a code that the packed products know, and their groups. */
const MOST_BITS = 8;
const GROUPS = [32, 64];
const GROUP_STEP = 128;
/** Most bits of linears that are joined. */
const JOINED_BITS = 4;

/** A packed weight and its codes. */
export type PackedValue = Packed & { readonly tensor: Tensor };

export class PackedBlock {
  /** By the weight's key; linears that are not here are loaded as numbers. */
  readonly weights: ReadonlyMap<string, PackedValue>;

  /** Keys of the linears whose rows are in one of the weights. */
  readonly holds: ReadonlySet<string>;

  /**
   * Linears of the same group become one weight (lib/models/joined.ts) where their codes allow it.
   *
   * Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE, AQ_OOM.
   */
  constructor(
    source: PackedWeights,
    specs: readonly TensorSpec[],
    device: string,
    groups: readonly (readonly string[])[] = [],
  ) {
    const weights = new Map<string, PackedValue>();
    const holds = new Set<string>();
    this.weights = weights;
    this.holds = holds;
    const add = (keys: readonly string[], linear: PackedLinear | undefined): boolean => {
      const packed = linear && pack(linear, device);
      if (!packed) return false;
      weights.set(joinedKey(keys), packed);
      for (const key of keys) holds.add(key);
      return true;
    };
    try {
      const left = new Map(specs.filter(({ name }) => source.has(name)).map((s) => [s.key, s]));
      const alone = [...left.keys()].filter((key) => !groups.some((keys) => keys.includes(key)));
      for (const keys of [...groups, ...alone.map((key) => [key])]) {
        const members = keys.flatMap((key) => {
          const spec = left.get(key);
          return spec ? [{ key, linear: source.read(spec) }] : [];
        });
        const isWhole = members.length === keys.length && keys.length > 1;
        if (isWhole && add(keys, joinRows(members.map(({ linear }) => linear)))) continue;
        for (const { key, linear } of members) add([key], linear);
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  dispose(): void {
    for (const value of this.weights.values()) {
      for (const held of Object.values(value)) if (held instanceof Tensor) held.dispose();
    }
  }
}

/** The rows of all, one matrix behind the other, where they are codes of one kind. */
function joinRows(linears: readonly PackedLinear[]): PackedIntegers | undefined {
  const integers = linears.flatMap((linear) => (linear.kind === "integers" ? [linear] : []));
  const [first] = integers;
  if (!first || integers.length < linears.length) return undefined;
  const { bits, columns, group } = first;
  const isSame = (one: PackedIntegers): boolean =>
    one.bits === bits && one.columns === columns && one.group === group && !one.groupOf;
  if (bits > JOINED_BITS || !integers.every(isSame)) return undefined;
  return {
    ...first,
    rows: integers.reduce((sum, { rows }) => sum + rows, 0),
    codes: concatenate(
      integers.map(({ codes }) => codes),
      (size) => new Uint8Array(size),
    ),
    scale: concatenate(
      integers.map(({ scale }) => scale),
      (size) => new Float32Array(size),
    ),
    zero: concatenate(
      integers.map(({ zero }) => zero),
      (size) => new Float32Array(size),
    ),
  };
}

function concatenate<T extends Uint8Array | Float32Array>(
  parts: readonly T[],
  make: (size: number) => T,
): T {
  const all = make(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The codes in the order of the product, or undefined where it does not know such a matrix. */
function pack(linear: PackedLinear, device: string): PackedValue | undefined {
  return linear.kind === "integers" ? packIntegers(linear, device) : packFloats(linear, device);
}

function packFloats(linear: PackedFloats, device: string): PackedValue {
  const { kind, rows, columns, group, codes, global } = linear;
  const format = FLOAT4_FORMATS[kind];
  return scope(() => {
    const given = [
      Tensor.from(codes, [rows, columns], "u8", device),
      Tensor.from(scalesOf(linear), [rows, columns / group], "f32", device),
    ];
    const packed = invoke("fp4_pack", given, { format }).map((tensor) => keep(tensor));
    const [tensor, scale] = packed as [Tensor, Tensor];
    const factor = global && keep(Tensor.from(Float32Array.of(global.factor), [1], "f32", device));
    const value = { kind: "fp4" as const, tensor, format, scale, outputs: rows };
    return { value: factor ? { ...value, factor } : value };
  }).value;
}

function packIntegers(linear: PackedIntegers, device: string): PackedValue | undefined {
  const { bits, rows, columns, codes, groupOf } = linear;
  const group = linear.group < columns ? linear.group : 0;
  const hasGroups = group === 0 || GROUPS.includes(group) || group % GROUP_STEP === 0;
  const order: 4 | 8 = bits <= 4 ? 4 : 8;
  if (bits > MOST_BITS || groupOf || !hasGroups || !hasZerosBelow(linear, 2 ** order)) {
    return undefined;
  }
  return scope(() => {
    const grid = [rows, linear.scale.length / rows];
    const scales = Tensor.from(linear.scale, grid, "f32", device);
    const zeros = Tensor.from(linear.zero, grid, "f32", device);
    if (!isHalf(scales)) return { value: undefined };
    const packed = invoke(
      `int${order}_pack`,
      [Tensor.from(codes, [rows, columns], "u8", device), scales, zeros],
      { group },
    ).map((tensor) => keep(tensor)) as [Tensor, Tensor, Tensor];
    const [tensor, scale, zero] = packed;
    return { value: { tensor, bits: order, scale, zero, outputs: rows, group } };
  }).value;
}

function hasZerosBelow({ zero }: PackedIntegers, end: number): boolean {
  return zero.every((z) => Number.isInteger(z) && z >= 0 && z < end);
}

/** Whether scales are the same in float16, which the packed form has. */
function isHalf(scales: Tensor): boolean {
  const half = invokeOne("cast", [scales], { dtype: dtypeCode("f16") });
  const back = invokeOne("cast", [half], { dtype: dtypeCode("f32") });
  return invokeOne("sq_diff", [scales, back]).item() === 0;
}
