/** Readers of option values. Each refuses what it cannot use and says what it would take. */
import { InvalidArgumentError } from "commander";
import { nearest } from "./suggest.ts";

export type ValueReader<T> = (text: string) => T;

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

/** One of a few words; a misspelt one is answered with the nearest. */
export function choice<const W extends string>(words: readonly W[]): ValueReader<W> {
  return (text) => {
    const found = words.find((word) => word === text);
    if (found !== undefined) return found;
    const near = nearest(text, words);
    throw new InvalidArgumentError(
      `Expected one of: ${words.join(", ")}.${near ? ` Did you mean ${near}?` : ""}`,
    );
  };
}

/** A path of a file or folder. Only what cannot be meant is refused: nothing, or the next option. */
export function path(text: string): string {
  if (text.trim() === "" || text.startsWith("--")) {
    throw new InvalidArgumentError("Expected a path.");
  }
  return text;
}
