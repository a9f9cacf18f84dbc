/**
 * Linears that stay as they are: those that `--keep` names, and those that a format of numbers cannot
 * hold. Names are the checkpoint's, "model.layers.0.mlp.down_proj"; a pattern may leave out what comes
 * before a dot, and `*` stands for any characters.
 */

import { AqError } from "../errors.ts";
import type { LinearSpec, Model } from "../models/family.ts";
import { FLOAT4_GROUPS, type QuantScheme, schemeName } from "../quant/scheme.ts";
import { nearest } from "../util/nearest.ts";

/** What decides about a linear. */
export interface KeepRules {
  /** Patterns of names. */
  readonly keep: readonly string[];
  readonly scheme: QuantScheme;
}

/** Keys of a block's linears that are not quantized. */
export function keptKeys(model: Model, block: number, rules: KeepRules): Set<string> {
  const patterns = rules.keep.map(matcher);
  const names = linearNames(model, block);
  const isKept = (linear: LinearSpec): boolean =>
    !fits(linear, rules.scheme) || patterns.some((matches) => matches(names.get(linear.key) ?? ""));
  return new Set(model.linears.filter(isKept).map(({ key }) => key));
}

/** Names of a block's linears as the checkpoint has them, by key. */
export function linearNames(model: Model, block: number): Map<string, string> {
  const names = new Map(model.blockTensors(block).map(({ key, name }) => [key, withoutEnd(name)]));
  return new Map(model.linears.map(({ key }) => [key, names.get(key) ?? key]));
}

/** Do groups divide its rows, where the format needs that? */
function fits({ in: columns }: LinearSpec, { numbers }: QuantScheme): boolean {
  return !numbers || columns % FLOAT4_GROUPS[numbers] === 0;
}

const withoutEnd = (name: string): string => name.replace(/\.weight$/, "");

/** The pattern fits the whole name, or its end behind a dot. */
function matcher(pattern: string): (name: string) => boolean {
  const body = withoutEnd(pattern)
    .split("*")
    .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"))
    .join(".*");
  const expression = new RegExp(`^(?:.*\\.)?${body}$`);
  return (name) => expression.test(name);
}

/**
 * Checks the patterns against a model.
 *
 * Throws: AQ_ARG for a pattern that names none of its linears, with the nearest name, and when nothing
 * would be left to quantize.
 */
export function checkKeep(model: Model, rules: KeepRules): void {
  const all = allNames(model);
  // The head is never quantized, so whoever names it gets what was asked for.
  const known = [...all, withoutEnd(model.headName())];
  for (const pattern of rules.keep) {
    if (pattern.trim() !== "" && known.some(matcher(pattern))) continue;
    const near = nearestPattern(pattern, all);
    throw new AqError(
      "AQ_ARG",
      `--keep ${pattern} names none of the model's ${all.length} linears, which are called like ${all[0]}${near ? `; did you mean ${near}?` : ""}`,
    );
  }
  const { blocks } = model.shape;
  const left = keptByBlock(model, rules).some((kept) => kept.size < model.linears.length);
  if (left) return;
  throw new AqError(
    "AQ_ARG",
    rules.keep.length > 0
      ? `--keep names all linears of all ${blocks} blocks, so that nothing is left to quantize; name fewer`
      : `${schemeName(rules.scheme)} needs rows that groups of ${rules.scheme.groupSize} divide, and no linear of this model has such; quantize with --wbits 4 and a --group-size that divides them`,
  );
}

/** The same of every block. */
export function keptByBlock(model: Model, rules: KeepRules): Set<string>[] {
  return Array.from({ length: model.shape.blocks }, (_, i) => keptKeys(model, i, rules));
}

function allNames(model: Model): string[] {
  const blocks = Array.from({ length: model.shape.blocks }, (_, i) => linearNames(model, i));
  return blocks.flatMap((names) => [...names.values()]);
}

/** The name, or the end or beginning of one, that the pattern may have meant. */
function nearestPattern(pattern: string, names: readonly string[]): string | undefined {
  const asked = withoutEnd(pattern).replace(/^\*\./, "");
  const parts = new Set<string>();
  for (const name of names) {
    const words = name.split(".");
    for (let from = 0; from < words.length; from++) {
      parts.add(words.slice(from).join("."));
      for (let to = from + 1; to < words.length; to++)
        parts.add(`${words.slice(from, to).join(".")}.*`);
    }
  }
  // Beside a star there is no whole name that is near.
  const whole = /\*./.test(asked) ? undefined : nearest(asked, [...parts]);
  if (whole !== undefined) return whole;
  const last = nearest(asked.replace(/^.*\./, ""), [
    ...new Set(names.map((name) => name.replace(/^.*\./, ""))),
  ]);
  return last === undefined ? undefined : `*.${last}`;
}

/** What a person should know of what is kept. */
export function keepNotes(model: Model, rules: KeepRules): string[] {
  const notes: string[] = [];
  const { scheme } = rules;
  const short = model.linears.filter((linear) => !fits(linear, scheme));
  for (const [columns, keys] of byColumns(short)) {
    const names = keys.map((key) => lastWord(linearNames(model, 0).get(key) ?? key)).join(", ");
    notes.push(
      `${names} of every block stay${keys.length > 1 ? "" : "s"} as stored: ${schemeName(scheme)} needs rows that groups of ${scheme.groupSize} divide, and ${keys.length > 1 ? "theirs have" : "its rows have"} ${columns}`,
    );
  }
  if (rules.keep.length === 0) return notes;
  const kept = keptByBlock(model, rules);
  const count = kept.reduce((sum, { size }) => sum + size, 0);
  notes.push(
    `${count} of ${kept.length * model.linears.length} linears stay as stored${short.length > 0 ? " in all" : ""} (--keep ${rules.keep.join(" ")})`,
  );
  const torn = model.residual.reads.find(({ consumers }) =>
    kept.some((keys) => {
      const among = consumers.filter((key) => keys.has(key)).length;
      return among > 0 && among < consumers.length;
    }),
  );
  if (torn) {
    const names = torn.consumers.map((key) => lastWord(linearNames(model, 0).get(key) ?? key));
    notes.push(
      `vLLM and SGLang run ${names.join(", ")} as one linear and refuse a checkpoint that keeps some of them: keep all or none where it is to be served`,
    );
  }
  return notes;
}

function byColumns(linears: readonly LinearSpec[]): Map<number, string[]> {
  const groups = new Map<number, string[]>();
  for (const { key, in: columns } of linears) {
    groups.set(columns, [...(groups.get(columns) ?? []), key]);
  }
  return groups;
}

const lastWord = (name: string): string => name.replace(/^.*\.(?=[^.]+$)/, "");
