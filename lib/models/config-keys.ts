/** Typed reading of a config.json: every value is checked, and every message names the key. */

import { AqError } from "../errors.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";

/** What a number may be; without `default` the key must be there. */
export interface NumberRule {
  readonly min: number;
  readonly max: number;
  readonly default?: number;
}

/** Largest number of tokens, features or ids: the engine's indices are 32 bits wide. */
export const MAX_COUNT: number = 2 ** 31 - 1;

/** A whole number. A key that is null counts as absent. Throws: AQ_MODEL. */
export function readInt(config: JsonObject, key: string, rule: NumberRule): number {
  const value = readNumber(config, key, rule);
  if (!Number.isSafeInteger(value)) throw wrong(key, "a whole number", value);
  return value;
}

/** A finite number. A key that is null counts as absent. Throws: AQ_MODEL. */
export function readNumber(config: JsonObject, key: string, rule: NumberRule): number {
  const value = config[key] ?? rule.default;
  const range = `a number from ${rule.min} to ${rule.max}`;
  if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(key, range, value);
  if (value < rule.min || value > rule.max) throw wrong(key, range, value);
  return value;
}

/** True or false. A key that is null counts as absent. Throws: AQ_MODEL. */
export function readBool(config: JsonObject, key: string, fallback: boolean): boolean {
  const value = config[key] ?? fallback;
  if (typeof value !== "boolean") throw wrong(key, "true or false", value);
  return value;
}

/** One of some words; without `fallback` the key must be there. Throws: AQ_MODEL. */
export function readWord<W extends string>(
  config: JsonObject,
  key: string,
  words: readonly W[],
  fallback?: W,
): W {
  const value = config[key] ?? fallback;
  const word = words.find((w) => w === value);
  if (word === undefined) throw wrong(key, words.map((w) => `"${w}"`).join(" or "), value);
  return word;
}

/** An object, or null when the key is absent or null. Throws: AQ_MODEL. */
export function readObject(config: JsonObject, key: string): JsonObject | null {
  const value = config[key] ?? null;
  if (value !== null && !isJsonObject(value)) throw wrong(key, "an object", value);
  return value;
}

/**
 * No matrix of `columns` columns may have more elements than can be addressed; `rows` by the keys that
 * they come from. Throws: AQ_MODEL.
 */
export function checkSizes(columns: number, rows: Readonly<Record<string, number>>): void {
  for (const [key, count] of Object.entries(rows)) {
    if (!Number.isSafeInteger(count * columns * 8)) {
      throw new AqError(
        "AQ_MODEL",
        `config.json: a matrix of ${count} x ${columns} (${key} x hidden_size) is too large.`,
      );
    }
  }
}

/** The error for a value that does not fit. */
export function wrong(key: string, expected: string, got: unknown): AqError {
  return new AqError("AQ_MODEL", `config.json: "${key}" must be ${expected}, got ${kindOf(got)}.`);
}
