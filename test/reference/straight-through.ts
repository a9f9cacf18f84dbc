// Gradient of learned fake quantization by the written rule: the forward formula on differentiable
// scalars, grid included.
import { roundEven } from "../helpers/half.ts";
import {
  backward,
  clampTo,
  largest,
  leaf,
  minus,
  type Node,
  negate,
  over,
  plus,
  roundThrough,
  smallest,
  squash,
  times,
} from "./differentiate.ts";
import { at } from "./numbers.ts";
import { type GridOptions, groupElements } from "./quantize.ts";

/** Gradients of x, the clipping logits and the rounding offsets; empty where there are none. */
export interface FakeQuantGradients {
  readonly gx: Float64Array;
  readonly gclip: Float64Array;
  readonly gv: Float64Array;
}

/** The published zero point, which is a constant to its gradient. */
function publishedZero(low: number, s: number, bits: number, symmetric: boolean): number {
  if (symmetric) return 2 ** (bits - 1) - 1;
  return roundEven(Math.min(Math.max(-low / s, -1e4), 1e4));
}

/** Gradients of sum(g y) for y = fakeQuant(x, quantGrid(x, clip), offset). */
export function fakeQuantGradient(
  x: Float64Array,
  clip: Float64Array | undefined,
  g: Float64Array,
  options: GridOptions,
  offset?: Float64Array,
): FakeQuantGradients {
  const { bits, symmetric, floor, published = false } = options;
  const codes = 2 ** bits - 1;
  const xs = Array.from(x, leaf);
  const logits = Array.from(clip ?? [], leaf);
  const offsets = Array.from(offset ?? [], leaf);
  const lists = groupElements(options);
  const outputs: { node: Node; seed: number }[] = [];

  lists.forEach((elements, group) => {
    const values = elements.map((i) => xs[i] as Node);
    const shared = logits.length === 1;
    const highLogit = shared ? logits[0] : logits[group];
    const lowLogit = shared ? logits[0] : logits[lists.length + group];
    const scaled = (extreme: Node, logit: Node | undefined) =>
      logit ? times(extreme, squash(logit)) : extreme;
    const atLeast = published ? Number.NEGATIVE_INFINITY : 0;
    const high = scaled(clampTo(largest(values), atLeast, Number.POSITIVE_INFINITY), highLogit);
    const low = scaled(clampTo(smallest(values), Number.NEGATIVE_INFINITY, -atLeast), lowLogit);
    const size = (node: Node) => (node.value < 0 ? negate(node) : node);
    const range = symmetric
      ? over(largest([size(high), size(low)]), leaf(2 ** (bits - 1) - 1))
      : over(minus(high, low), leaf(codes));
    const s = clampTo(range, floor, Number.POSITIVE_INFINITY);
    const z = published
      ? leaf(publishedZero(low.value, s.value, bits, symmetric))
      : symmetric
        ? leaf(2 ** (bits - 1))
        : clampTo(roundThrough(over(negate(low), s)), 0, codes);
    for (const i of elements) {
      const steps = over(xs[i] as Node, s);
      const shift = offsets[i];
      const whole = roundThrough(shift ? plus(steps, shift) : steps);
      const code = clampTo(plus(whole, z), 0, codes);
      outputs.push({ node: times(minus(code, z), s), seed: at(g, i) });
    }
  });
  backward(outputs);
  return {
    gx: Float64Array.from(xs, (node) => node.gradient),
    gclip: Float64Array.from(logits, (node) => node.gradient),
    gv: Float64Array.from(offsets, (node) => node.gradient),
  };
}
