/** 4-bit floats against the run, and the numbers that they stand for. */

import type { GlobalScale, PackedFloats } from "../packed/float4.ts";
import { scalesOf } from "../packed/float4.ts";
import { compareNumbers, differs, type Place } from "./compare.ts";
import type { StateFloats } from "./state.ts";
import type { Tally } from "./tally.ts";

/** What the codes of e2m1 stand for. */
const VALUES: readonly number[] = [
  ...[0, 0.5, 1, 1.5, 2, 3, 4, 6],
  ...[-0, -0.5, -1, -1.5, -2, -3, -4, -6],
];

/** Throws: AQ_FORMAT at the first difference; `hasInput`: the layout has a place for the input's scale. */
export function compareFloats(
  got: PackedFloats,
  state: StateFloats,
  place: (what: string) => Place,
  hasInput: boolean,
  tally: Tally,
): void {
  compareNumbers(place("code"), got.codes, state.codes, state.columns);
  const hex = (byte: number): string => `0x${byte.toString(16)}`;
  compareNumbers(place("scale (its byte)"), got.scaleBytes, state.scaleBytes, state.groups, hex);
  compareGlobal(place("the global scale"), got.global, state.global);
  const input = hasInput ? state.input : null;
  compareGlobal(place("the global scale of its input"), got.input, input);
  if (got.global?.isInverse) {
    tally.note("global scales are compared as 1 / g in float32, which the file stores");
  }
  tally.scales += state.scaleBytes.length;
  for (const global of [state.global, input]) if (global !== null) tally.scales++;
}

/** Bit for bit, in the direction in which it is stored. */
function compareGlobal(place: Place, got: GlobalScale | null, expected: number | null): void {
  if (!got || expected === null) {
    if (!got && expected === null) return;
    throw differs(place, "", String(expected ?? "none"), String(got?.stored ?? "none"));
  }
  const wanted = got.isInverse ? Math.fround(1 / Math.fround(expected)) : Math.fround(expected);
  compareNumbers(place, [got.stored], [wanted], 0);
}

/** value (scale / global) in float32. */
export function floatValues(state: StateFloats): Float32Array {
  const { rows, columns, group, groups, codes, global } = state;
  const steps = scalesOf(state);
  if (global !== null)
    for (let g = 0; g < steps.length; g++) steps[g] = (steps[g] as number) / global;
  const w = new Float32Array(rows * columns);
  for (let o = 0; o < rows; o++) {
    for (let i = 0; i < columns; i++) {
      const at = o * columns + i;
      const step = steps[o * groups + Math.floor(i / group)] as number;
      w[at] = (VALUES[codes[at] as number] as number) * step;
    }
  }
  return w;
}
