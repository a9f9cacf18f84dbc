/**
 * Changes valid JSON into other valid JSON, most of it close to what a reader accepts: numbers a little
 * off, keys gone or twice, values of other kinds, parts exchanged. Texts and not values come out, since
 * a text can say what no value can: 1e400, a key that occurs twice, a depth of thousands.
 */
import fc from "fast-check";

type Node =
  | { readonly kind: "object"; readonly items: [string, Node][] }
  | { readonly kind: "array"; readonly items: Node[] }
  | { readonly kind: "text"; readonly text: string };

/** One change: the place and what happens there, both modulo what there is. */
export interface Mutation {
  readonly place: number;
  readonly other: number;
  readonly action: (typeof ACTIONS)[number];
  /** A JSON text, or the name of a long one. */
  readonly value: string;
}

const ACTIONS = [
  "replace",
  "replace",
  "nudge",
  "nudge",
  "remove",
  "repeat",
  "rename",
  "exchange",
  "copy",
  "wrap",
] as const;

/** Values at the edges of what readers expect, and beyond. */
const VALUES = [
  ...["0", "1", "-1", "2", "3", "64", "1.5", "1e3", "-0", "0.0", "1e-320"],
  ...["2147483647", "2147483648", "4294967296", "9007199254740991", "9007199254740993"],
  ...["18446744073709551616", "1e308", "1e400", "-1e400"],
  ...["null", "true", "false", "[]", "{}", "[[]]", "[null]", '{"":0}'],
  ...['""', '"0"', '"F16"', '"BOOL"', '"__proto__"', '"toString"', '"float16"', '"\\ud800"'],
  ...['"../x.safetensors"', '"/etc/passwd"', '"a/b.safetensors"', '".safetensors"', '"x\\u0000"'],
  ...['"llama"', '"opt"', '"linear"', '"llama3"', '"yarn"', '"silu"', '"relu"'],
];

/** Values by a name, which is all that a report of a failure shows of them. */
const LONG: Readonly<Record<string, string>> = {
  "long text": JSON.stringify("x".repeat(5000)),
  "long array": `[${"0,".repeat(5000)}0]`,
  "deep arrays": nested("[", "]", 3000),
  "deep objects": nested('{"a":', "}", 3000),
};

function nested(open: string, close: string, depth: number): string {
  return `${open.repeat(depth)}0${close.repeat(depth)}`;
}

/** A few changes of one JSON text. */
export function mutations(): fc.Arbitrary<Mutation[]> {
  const value = fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(...VALUES, ...Object.keys(LONG)) },
    { weight: 1, arbitrary: fc.integer().map(String) },
  );
  const mutation = fc.record({
    place: fc.nat(),
    other: fc.nat(),
    action: fc.constantFrom(...ACTIONS),
    value,
  });
  // Mostly one or two: a text with many changes fails at the first and hides the others.
  return fc.oneof(
    { weight: 4, arbitrary: fc.array(mutation, { minLength: 1, maxLength: 2 }) },
    { weight: 1, arbitrary: fc.array(mutation, { minLength: 3, maxLength: 6 }) },
  );
}

/** The text of `value` with the changes made; always valid JSON. */
export function mutate(value: unknown, changes: readonly Mutation[]): string {
  const root: Slot = { holder: [toNode(value)], at: 0 };
  for (const change of changes) apply(root, change);
  return toText(read(root));
}

/** A place in the tree that holds a node. */
interface Slot {
  readonly holder: Node[] | [string, Node][];
  readonly at: number;
}

function read({ holder, at }: Slot): Node {
  const item = holder[at] as Node | [string, Node];
  return Array.isArray(item) ? item[1] : item;
}

function write({ holder, at }: Slot, node: Node): void {
  const item = holder[at] as Node | [string, Node];
  if (Array.isArray(item)) item[1] = node;
  else holder[at] = node;
}

/** The slot itself and all below it; leaves come last in their parent. */
function slotsOf(slot: Slot): Slot[] {
  const node = read(slot);
  if (node.kind === "text") return [slot];
  return [slot, ...node.items.flatMap((_, at) => slotsOf({ holder: node.items, at }))];
}

function apply(root: Slot, { place, other, action, value }: Mutation): void {
  const slots = slotsOf(root);
  // Not the root, unless there is nothing else: what becomes of it is tested soon enough.
  const pick = (n: number): Slot => slots[slots.length === 1 ? 0 : 1 + (n % (slots.length - 1))]!;
  const slot = pick(place);
  const node = read(slot);
  const { holder, at } = slot;
  const item = holder[at] as Node | [string, Node];
  switch (action) {
    case "replace":
      write(slot, { kind: "text", text: LONG[value] ?? value });
      break;
    case "nudge":
      write(slot, nudged(node, other));
      break;
    case "remove":
      if (slots.length > 1) holder.splice(at, 1);
      break;
    case "repeat":
      if (slots.length > 1) (holder as unknown[]).push(structuredClone(item));
      break;
    case "rename":
      if (Array.isArray(item)) item[0] = renamed(item[0], value, other);
      break;
    case "exchange": {
      const second = pick(other);
      const here = structuredClone(node);
      write(slot, structuredClone(read(second)));
      write(second, here);
      break;
    }
    case "copy":
      write(slot, structuredClone(read(pick(other))));
      break;
    case "wrap":
      write(slot, { kind: "array", items: [node] });
      break;
  }
}

/** A number a little or much different, a text with a character more or less. */
function nudged(node: Node, how: number): Node {
  if (node.kind !== "text") return node;
  const n = Number(node.text);
  if (node.text.startsWith('"') || Number.isNaN(n)) {
    const inner = node.text.replace(/^"|"$/g, "");
    const text = how % 2 === 0 ? `${inner}x` : inner.slice(0, -1).replace(/\\[^"]*$/, "");
    return { kind: "text", text: JSON.stringify(text) };
  }
  const numbers = [n + 1, n - 1, 2 * n, n / 2, -n, n + 0.5, n * 2 ** 31, n + 8];
  const text = JSON.stringify(numbers[how % numbers.length]) as string;
  return { kind: "text", text: text === "null" ? "1e999" : text };
}

function renamed(key: string, value: string, how: number): string {
  const names = [`${key}x`, key.slice(1), "__proto__", "__metadata__", "constructor", value, ""];
  return names[how % names.length] as string;
}

function toNode(value: unknown): Node {
  if (Array.isArray(value)) return { kind: "array", items: value.map(toNode) };
  if (typeof value === "object" && value !== null) {
    return { kind: "object", items: Object.entries(value).map(([k, v]) => [k, toNode(v)]) };
  }
  return { kind: "text", text: JSON.stringify(value) };
}

function toText(node: Node): string {
  if (node.kind === "text") return node.text;
  if (node.kind === "array") return `[${node.items.map(toText).join(",")}]`;
  return `{${node.items.map(([key, v]) => `${JSON.stringify(key)}:${toText(v)}`).join(",")}}`;
}
