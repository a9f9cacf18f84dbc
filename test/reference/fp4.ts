// 4-bit floats in float64: e2m1 numbers whose groups share a scale, by the definitions in
// native/abi/params.h, and their gradient by its written rule.
import { type HalfFormat, roundHalf } from "../helpers/half.ts";
import {
  backward,
  clampTo,
  largest,
  leaf,
  Node,
  negate,
  over,
  plus,
  squash,
  times,
} from "./differentiate.ts";
import { at, sigmoid } from "./numbers.ts";
import { groupElements } from "./quantize.ts";

/** 0: NVFP4, 1: MXFP4. */
export type Fp4Format = 0 | 1;

/** Columns that share a scale. */
export function groupSize(format: number): number {
  return format === 1 ? 32 : 16;
}

/** The bytes of NVFP4's scales; clamped to 448, below what would be infinite. */
const E4M3: HalfFormat = { mantissa: 3, minExponent: -6, maxExponent: 8 };
const LEAST_SCALE = 2 ** -9;
const MOST_SCALE = 448;
const TOP = 6;

/** Numbers of the codes 0 .. 7. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6] as const;

/** The number of a code 0 .. 15. */
export function e2m1(code: number): number {
  const size = E2M1[code % 8] as number;
  return code >= 8 && size > 0 ? -size : size;
}

/** The code whose number is nearest, of two the even one; negative numbers have bit 3. */
export function e2m1Code(w: number): number {
  const size = Math.min(Math.abs(w), TOP);
  let nearest = 0;
  for (const [code, number] of E2M1.entries()) {
    const [own, other] = [Math.abs(number - size), Math.abs((E2M1[nearest] as number) - size)];
    if (own < other || (own === other && code % 2 === 0)) nearest = code;
  }
  return w < 0 && nearest > 0 ? nearest + 8 : nearest;
}

/** Exponent of the power of two at or below x > 0. */
function exponentOf(x: number): number {
  let exponent = Math.floor(Math.log2(x));
  if (2 ** exponent > x) exponent--;
  if (2 ** (exponent + 1) <= x) exponent++;
  return exponent;
}

/** The scale of a group of clipped magnitude a. */
export function scaleOf(a: number, g: number, format: number): number {
  if (Number.isNaN(a)) return a;
  if (format === 0) {
    return roundHalf(Math.min(Math.max((a / 6) * g, LEAST_SCALE), MOST_SCALE), E4M3);
  }
  if (a === 0) return 2 ** -126;
  // At a mantissa of 1.75 and above the sum of the bits carries into the exponent.
  const below = exponentOf(a);
  const exponent = a / 2 ** below >= 1.75 ? below + 1 : below;
  return 2 ** Math.min(Math.max(exponent - 2, -126), 127);
}

/** The global scale in use. */
export function globalOf(g: Float64Array | undefined): number {
  const value = g ? at(g, 0) : 1;
  return Number.isFinite(value) ? value : 1;
}

/** min(g, 2688 / max |x|) */
export function globalScale(x: Float64Array, g: number): number {
  let most = 0;
  for (const value of x) {
    if (Number.isNaN(value)) return value;
    most = Math.max(most, Math.abs(value));
  }
  return Math.min(g, (MOST_SCALE * TOP) / most);
}

/** A matrix [M, K] and how it is to be quantized. */
export interface Fp4Options {
  readonly M: number;
  readonly K: number;
  readonly format: number;
  readonly g: number;
  /** Logits of the clipping factor, one or one per group. */
  readonly clip?: Float64Array | undefined;
  /** Rounding offsets. */
  readonly v?: Float64Array | undefined;
}

const groupsOf = ({ M, K, format }: Fp4Options) =>
  groupElements({ M, K, group: groupSize(format) });

/** Step of e2m1 around a magnitude. */
function stepAt(u: number): number {
  if (Math.abs(u) < 2) return 0.5;
  return Math.abs(u) < 4 ? 1 : 2;
}

/** Scale of every group, and code of every element; a code of a NaN is 0. */
export function fp4Quantize(
  x: Float64Array,
  options: Fp4Options,
): { readonly scale: Float64Array; readonly codes: Float64Array } {
  const { g, clip, v, format } = options;
  const lists = groupsOf(options);
  const scale = new Float64Array(lists.length);
  const codes = new Float64Array(x.length);
  lists.forEach((elements, group) => {
    const sizes = elements.map((i) => Math.abs(at(x, i)));
    const factor = clip ? sigmoid(at(clip, clip.length === 1 ? 0 : group)) : 1;
    const s = scaleOf(Math.max(...sizes) * factor, g, format);
    scale[group] = s;
    for (const i of elements) {
      const u = at(x, i) * (g / s);
      codes[i] = e2m1Code(u + (v ? at(v, i) * stepAt(u) : 0));
    }
  });
  return { scale, codes };
}

/** q s / g of every element. */
export function fp4Values(
  codes: Float64Array,
  scale: Float64Array,
  { K, format, g }: { readonly K: number; readonly format: number; readonly g: number },
): Float64Array {
  const group = groupSize(format);
  if (K % group !== 0) throw new Error(`${K} columns are not whole groups of ${group}`);
  return codes.map((code, i) => e2m1(code) * (at(scale, Math.floor(i / group)) / g));
}

/** Gradients of x, the clipping logits and the rounding offsets; empty where there are none. */
export interface Fp4Gradients {
  readonly gx: Float64Array;
  readonly gclip: Float64Array;
  readonly gv: Float64Array;
}

/** Gradients of sum(grad y) for y = q s / g, straight through the roundings of q and of s. */
export function fp4Gradient(
  x: Float64Array,
  grad: Float64Array,
  options: Fp4Options,
): Fp4Gradients {
  const { g, clip, v, format } = options;
  const xs = Array.from(x, leaf);
  const logits = Array.from(clip ?? [], leaf);
  const offsets = Array.from(v ?? [], leaf);
  const outputs: { node: Node; seed: number }[] = [];
  groupsOf(options).forEach((elements, group) => {
    const sizes = elements.map((i) => {
      const node = xs[i] as Node;
      return node.value < 0 ? negate(node) : node;
    });
    const logit = logits.length === 1 ? logits[0] : logits[group];
    const most = largest(sizes);
    const a = logit ? times(most, squash(logit)) : most;
    const value = scaleOf(a.value, g, format);
    let s: Node;
    if (format === 0) {
      const before = clampTo(times(over(a, leaf(6)), leaf(g)), LEAST_SCALE, MOST_SCALE);
      s = new Node(value, [{ from: before, slope: 1 }]);
    } else {
      s = new Node(value, [{ from: a, slope: a.value === 0 ? 0 : value / a.value }]);
    }
    const step = over(s, leaf(g));
    for (const i of elements) {
      const u = over(xs[i] as Node, step);
      const offset = offsets[i];
      const w = offset ? plus(u, times(offset, leaf(stepAt(u.value)))) : u;
      const kept = clampTo(w, -TOP, TOP);
      const q = new Node(e2m1(e2m1Code(kept.value)), [{ from: kept, slope: 1 }]);
      outputs.push({ node: times(q, step), seed: at(grad, i) });
    }
  });
  backward(outputs);
  return {
    gx: Float64Array.from(xs, (node) => node.gradient),
    gclip: Float64Array.from(logits, (node) => node.gradient),
    gv: Float64Array.from(offsets, (node) => node.gradient),
  };
}
