/** Readers of option values. Each refuses what it cannot use and says what it would take. */
import { InvalidArgumentError } from "commander";
import type { DeviceName } from "../types.ts";
import { nearest } from "../util/nearest.ts";

/** `words`: all that it takes, where they can be listed; shells complete them. */
export type ValueReader<T> = ((text: string) => T) & { readonly words?: readonly string[] };

/** A whole number from `min` to `max`, or one of `also`. */
export function integer(
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
  also: readonly number[] = [],
  hint = "",
): ValueReader<number> {
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  const extra = also.length > 0 ? `, or ${also.join(" or ")}` : "";
  const expected = `Expected a whole number ${range}${extra}.${hint ? ` ${hint}` : ""}`;
  return (text) => {
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
    if ((value >= min && value <= max) || also.includes(value)) return value;
    throw new InvalidArgumentError(expected);
  };
}

/** A decimal number from `min` to `max`. */
export function decimal(min: number, max: number = Number.POSITIVE_INFINITY): ValueReader<number> {
  const range = Number.isFinite(max) ? `from ${min} to ${max}` : `of at least ${min}`;
  return (text) => {
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    if (Number.isFinite(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Expected a number ${range}.`);
  };
}

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
  TIB: 2 ** 40,
};

/** A number of bytes with an optional unit: "64MB", "1.5 GiB", "100000000". */
export function byteCount(text: string): number {
  const [, digits = "", unit = ""] = /^(\d+\.?\d*|\.\d+)\s*([a-z]*)$/i.exec(text.trim()) ?? [];
  const bytes = Math.floor(
    Number(digits || Number.NaN) * (UNITS[unit.toUpperCase()] ?? Number.NaN),
  );
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new InvalidArgumentError(
    "Expected a size like 64MB or 2GB (units: KB, MB, GB, TB, or KiB to TiB in powers of two).",
  );
}

/** One of a few words; a misspelt one is answered with the nearest. */
export function choice<const W extends string>(words: readonly W[]): ValueReader<W> {
  const read = (text: string): W => {
    const found = words.find((word) => word === text);
    if (found !== undefined) return found;
    const near = nearest(text, words);
    throw new InvalidArgumentError(
      `Expected one of: ${words.join(", ")}.${near ? ` Did you mean ${near}?` : ""}`,
    );
  };
  return Object.assign(read, { words });
}

/** One of a few names, in whichever case it is written. */
export function caselessChoice<const W extends string>(names: readonly W[]): ValueReader<W> {
  const exact = choice(names);
  const read = (text: string): W =>
    exact(names.find((name) => name.toLowerCase() === text.toLowerCase()) ?? text);
  return Object.assign(read, { words: names });
}

/** Some of a few words, with commas between them; none twice. */
export function choices<const W extends string>(words: readonly W[]): ValueReader<readonly W[]> {
  const one = choice(words);
  const read = (text: string): readonly W[] => [
    ...new Set(text.split(",").map((word) => one(word.trim()))),
  ];
  return Object.assign(read, { words });
}

const DEVICES = ["auto", "cpu", "cuda"] as const;

/** The name of a device, "cuda:1" included. */
export const deviceName: ValueReader<DeviceName> = Object.assign(
  (text: string): DeviceName => {
    if (/^cuda:\d{1,3}$/.test(text)) return text as DeviceName;
    const found = DEVICES.find((word) => word === text);
    if (found !== undefined) return found;
    const near = nearest(text, DEVICES);
    throw new InvalidArgumentError(
      `Expected auto, cpu, cuda or cuda:N with the number of a GPU.${near ? ` Did you mean ${near}?` : ""}`,
    );
  },
  { words: DEVICES },
);

/** Names of tensors, with `*` for any characters. */
export function pattern(text: string): string {
  if (/^[\w.*-]+$/.test(text)) return text;
  throw new InvalidArgumentError(
    "Expected a name as the checkpoint has it, like model.layers.0.mlp.down_proj, with * for any characters.",
  );
}

/** A path of a file or folder. Only what cannot be meant is refused: nothing, or the next option. */
export function path(text: string): string {
  if (text.trim() === "" || text.startsWith("--")) {
    throw new InvalidArgumentError("Expected a path.");
  }
  return text;
}
