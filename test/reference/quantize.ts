// The quantizers in float64. A matrix [M, K] is cut along K into groups of `group` (0: the row).
import { F16, roundEven, roundHalf } from "../helpers/half.ts";
import { at, sigmoid } from "./numbers.ts";

/** How a matrix is cut into groups. */
export interface Groups {
  readonly M: number;
  readonly K: number;
  /** Elements of a group; 0: a whole row. */
  readonly group: number;
}

/** How the grid of a group follows from its extremes. */
export interface GridOptions extends Groups {
  readonly bits: number;
  readonly symmetric: boolean;
  /** Smallest scale. */
  readonly floor: number;
  readonly roundF16: boolean;
  /** The published code's rule. */
  readonly published?: boolean | undefined;
}

/** Scale and zero point of every group, [M, G]. */
export interface Grid {
  readonly scale: Float64Array;
  readonly zero: Float64Array;
}

/** Groups of a row. */
export function groupCount({ K, group }: Groups): number {
  return group > 0 ? Math.ceil(K / group) : 1;
}

/** Number of the group, counted over the whole matrix, that an element belongs to. */
export function groupOf(element: number, groups: Groups): number {
  const { K, group } = groups;
  const column = element % K;
  const inRow = group > 0 ? Math.floor(column / group) : 0;
  return Math.floor(element / K) * groupCount(groups) + inRow;
}

/** Elements of every group, in order. */
export function groupElements(groups: Groups): readonly (readonly number[])[] {
  const { M, K } = groups;
  const lists: number[][] = Array.from({ length: M * groupCount(groups) }, () => []);
  for (let element = 0; element < M * K; element++) lists[groupOf(element, groups)]?.push(element);
  return lists;
}

/** The factors on a group's maximum and minimum that its clipping logits give. */
export function clipFactors(
  clip: Float64Array | undefined,
  group: number,
  count: number,
): readonly [number, number] {
  if (clip === undefined) return [1, 1];
  if (clip.length === 1) return [sigmoid(at(clip, 0)), sigmoid(at(clip, 0))];
  return [sigmoid(at(clip, group)), sigmoid(at(clip, count + group))];
}

/** Scale and zero point from the extremes of each group; zero always inside, but for the published rule. */
export function quantGrid(
  x: Float64Array,
  clip: Float64Array | undefined,
  options: GridOptions,
): Grid {
  const { bits, symmetric, floor, roundF16, published = false } = options;
  const lists = groupElements(options);
  const scale = new Float64Array(lists.length);
  const zero = new Float64Array(lists.length);
  lists.forEach((elements, group) => {
    const values = elements.map((i) => at(x, i));
    const [highFactor, lowFactor] = clipFactors(clip, group, lists.length);
    const zeroToo = published ? [] : [0];
    const high = Math.max(...values, ...zeroToo) * highFactor;
    const low = Math.min(...values, ...zeroToo) * lowFactor;
    const codes = 2 ** bits - 1;
    let s = symmetric
      ? Math.max(Math.max(Math.abs(high), Math.abs(low)) / (2 ** (bits - 1) - 1), floor)
      : Math.max((high - low) / codes, floor);
    if (roundF16) s = roundHalf(s, F16);
    scale[group] = s;
    if (published) {
      const z = Math.min(Math.max(-low / s, -1e4), 1e4);
      zero[group] = symmetric ? 2 ** (bits - 1) - 1 : roundEven(z);
    } else {
      const z = symmetric ? 2 ** (bits - 1) : roundEven(-low / s);
      zero[group] = Math.min(Math.max(z, 0), codes);
    }
  });
  return { scale, zero };
}

/** Codes 0 .. 2^bits - 1 of the elements on a given grid; `offset` is added before the rounding. */
export function quantize(
  x: Float64Array,
  { scale, zero }: Grid,
  bits: number,
  groups: Groups,
  offset?: Float64Array,
): Float64Array {
  return x.map((value, i) => {
    const group = groupOf(i, groups);
    const shift = offset ? at(offset, i) : 0;
    const code = roundEven(value / at(scale, group) + shift) + at(zero, group);
    return Math.min(Math.max(code, 0), 2 ** bits - 1);
  });
}

/** (code - z) s */
export function dequantize(
  codes: Float64Array,
  { scale, zero }: Grid,
  groups: Groups,
): Float64Array {
  return codes.map((code, i) => {
    const group = groupOf(i, groups);
    return (code - at(zero, group)) * at(scale, group);
  });
}

/** The values that remain after quantizing on a given grid. */
export function fakeQuant(
  x: Float64Array,
  grid: Grid,
  bits: number,
  groups: Groups,
  offset?: Float64Array,
): Float64Array {
  return dequantize(quantize(x, grid, bits, groups, offset), grid, groups);
}
