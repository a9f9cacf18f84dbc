// A scalar reverse-mode differentiator in float64 with the conventions of the method: rounding is
// straight through, clamps pass inside and at their bounds, extremes share ties equally. It knows
// nothing of the formulas that the kernels use.
import { roundEven } from "../helpers/half.ts";
import { sigmoid } from "./numbers.ts";

interface Edge {
  readonly from: Node;
  readonly slope: number;
}

/** A number that remembers how it was made. */
export class Node {
  readonly value: number;
  readonly edges: readonly Edge[];
  gradient = 0;

  constructor(value: number, edges: readonly Edge[] = []) {
    this.value = value;
    this.edges = edges;
  }
}

/** A constant or a leaf. */
export function leaf(value: number): Node {
  return new Node(value);
}

/** a + b */
export function plus(a: Node, b: Node): Node {
  return new Node(a.value + b.value, [
    { from: a, slope: 1 },
    { from: b, slope: 1 },
  ]);
}

/** a - b */
export function minus(a: Node, b: Node): Node {
  return new Node(a.value - b.value, [
    { from: a, slope: 1 },
    { from: b, slope: -1 },
  ]);
}

/** a b */
export function times(a: Node, b: Node): Node {
  return new Node(a.value * b.value, [
    { from: a, slope: b.value },
    { from: b, slope: a.value },
  ]);
}

/** a / b */
export function over(a: Node, b: Node): Node {
  return new Node(a.value / b.value, [
    { from: a, slope: 1 / b.value },
    { from: b, slope: -a.value / b.value ** 2 },
  ]);
}

/** 1 / (1 + e^-a) */
export function squash(a: Node): Node {
  const y = sigmoid(a.value);
  return new Node(y, [{ from: a, slope: y * (1 - y) }]);
}

/** The nearest whole number, with the slope of the identity. */
export function roundThrough(a: Node): Node {
  return new Node(roundEven(a.value), [{ from: a, slope: 1 }]);
}

/** a kept between two constants; the slope is one inside and at the bounds. */
export function clampTo(a: Node, low: number, high: number): Node {
  const inside = a.value >= low && a.value <= high;
  return new Node(Math.min(Math.max(a.value, low), high), [{ from: a, slope: inside ? 1 : 0 }]);
}

/** The largest of several, the slope shared by all that reach it. */
export function largest(nodes: readonly Node[]): Node {
  const value = Math.max(...nodes.map((node) => node.value));
  const reached = nodes.filter((node) => node.value === value);
  return new Node(
    value,
    reached.map((from) => ({ from, slope: 1 / reached.length })),
  );
}

/** -a */
export function negate(a: Node): Node {
  return new Node(-a.value, [{ from: a, slope: -1 }]);
}

/** The smallest of several, the slope shared by all that reach it. */
export function smallest(nodes: readonly Node[]): Node {
  return negate(largest(nodes.map(negate)));
}

/** Adds d(sum of seeds x nodes)/d(node) to `gradient` of everything that the nodes were made from. */
export function backward(outputs: readonly { readonly node: Node; readonly seed: number }[]): void {
  const order: Node[] = [];
  const seen = new Set<Node>();
  const visit = (node: Node): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const { from } of node.edges) visit(from);
    order.push(node);
  };
  for (const { node, seed } of outputs) {
    visit(node);
    node.gradient += seed;
  }
  for (const node of order.reverse()) {
    for (const { from, slope } of node.edges) from.gradient += slope * node.gradient;
  }
}
