/** HTML and SVG as strings. Text is escaped here and nowhere else. */

/** A piece of finished markup; plain strings are text and get escaped. */
export interface Markup {
  readonly html: string;
}

export type Child = Markup | string | number | null | readonly Child[];

/** An element; attributes whose value is null are left out. */
export function element(
  tag: string,
  attributes: Readonly<Record<string, string | number | null>> = {},
  ...children: readonly Child[]
): Markup {
  const list = Object.entries(attributes)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => ` ${name}="${escapeText(number(value as string | number))}"`);
  const open = `<${tag}${list.join("")}>`;
  return { html: VOID.has(tag) ? open : `${open}${render(children)}</${tag}>` };
}

const VOID: ReadonlySet<string> = new Set(["meta", "br"]);

function render(child: Child): string {
  if (child === null) return "";
  if (typeof child === "string" || typeof child === "number") return escapeText(String(child));
  if ("html" in child) return child.html;
  return child.map(render).join("");
}

/** Coordinates need no more than hundredths of a unit. */
function number(value: string | number): string {
  return typeof value === "number" ? String(Math.round(value * 100) / 100) : value;
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ENTITIES[character] as string);
}
