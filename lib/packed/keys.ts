/** Checked reading of a description's objects; every message says where and which key. */

import { AqError } from "../errors.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";

const READ =
  "aq, gptq, awq (gemm), modelopt (NVFP4) and compressed-tensors (pack-quantized, int-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized)";

/** The error for what is well formed and not read here. */
export function unread(where: string, what: string): AqError {
  return new AqError(
    "AQ_MODEL",
    `${where} has ${what}, which this version cannot read; it reads ${READ}`,
  );
}

/** Checked reading of one object. A key that is null counts as absent. */
export class Keys {
  readonly where: string;
  readonly #json: JsonObject;

  constructor(json: JsonObject, where: string) {
    this.#json = json;
    this.where = where;
  }

  wrong(key: string, expected: string, got: unknown = this.#json[key]): AqError {
    return new AqError(
      "AQ_FORMAT",
      `${this.where}: "${key}" must be ${expected}, got ${kindOf(got)}`,
    );
  }

  value(key: string): unknown {
    return this.#json[key];
  }

  int(key: string, min: number, max: number): number {
    const value = this.#json[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
      throw this.wrong(key, `a whole number from ${min} to ${max}`);
    }
    return value;
  }

  /** Weights that share a scale; 0 stands for -1, one group. */
  group(key: string): number {
    const value = this.int(key, -1, 2 ** 31 - 1);
    if (value === 0) throw this.wrong(key, "-1 or at least 1");
    return Math.max(0, value);
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.#json[key] ?? fallback;
    if (typeof value !== "boolean") throw this.wrong(key, "true or false");
    return value;
  }

  word(key: string): string | null {
    const value = this.#json[key] ?? null;
    if (value !== null && typeof value !== "string") throw this.wrong(key, "a text");
    return value;
  }

  object(key: string): JsonObject | null {
    const value = this.#json[key] ?? null;
    if (value !== null && !isJsonObject(value)) throw this.wrong(key, "an object");
    return value;
  }

  expect(key: string, words: readonly string[], fallback?: string): string {
    const value = this.word(key) ?? fallback;
    if (value !== undefined && words.includes(value)) return value;
    throw unread(this.where, `${key} ${kindOf(value)}`);
  }
}
