/** JSON from files that other programs wrote: checked when read, and written back as they spelled it. */

import * as fs from "node:fs";
import { AqError } from "../errors.ts";
import { fileError } from "./fs.ts";
import { depthOf, scanJson } from "./json-scan.ts";

export type JsonObject = { [key: string]: unknown };

/**
 * Deeper files are refused: no honest one has a tenth of it, and code that walks a value, JSON.stringify
 * included, would overflow the stack or take quadratic time.
 */
const MAX_DEPTH = 200;

/** True for a JSON object: not null, not an array. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Decodes UTF-8 strictly; a byte-order mark at the start is dropped.
 *
 * Throws: AQ_FORMAT naming `where`.
 */
export function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new AqError("AQ_FORMAT", `${where} is not valid UTF-8.`, { cause: error });
  }
}

/**
 * Parses a JSON object.
 *
 * Throws: AQ_FORMAT naming `where` when the text is not JSON, not an object, or nested too deep.
 */
export function parseJsonObject(text: string, where: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new AqError("AQ_FORMAT", `${where} is not valid JSON: ${reason}.`, { cause: error });
  }
  if (!isJsonObject(value)) {
    throw new AqError("AQ_FORMAT", `${where} holds ${kindOf(value)}, expected a JSON object.`);
  }
  const depth = depthOf(text);
  if (depth > MAX_DEPTH) {
    throw new AqError(
      "AQ_FORMAT",
      `${where} is nested ${depth} deep, expected ${MAX_DEPTH} at most.`,
    );
  }
  return value;
}

/** Reads a JSON file's text. Throws: AQ_FILE, AQ_FORMAT. */
export function readJsonText(file: string): string {
  let bytes: Uint8Array;
  try {
    bytes = fs.readFileSync(file);
  } catch (error) {
    throw fileError("read", file, error);
  }
  return decodeUtf8(bytes, file);
}

/** Reads a JSON object from a file. Throws: AQ_FILE, AQ_FORMAT. */
export function readJsonFile(file: string): JsonObject {
  return parseJsonObject(readJsonText(file), file);
}

/** A value's kind in words, for messages. */
export function kindOf(value: unknown): string {
  if (value === null) return "null";
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object") return "an object";
  if (typeof value === "string") return JSON.stringify(value.slice(0, 60));
  return `${typeof value} ${String(value)}`;
}

/**
 * First key that occurs twice in one object of a valid JSON text, as a path, or null.
 *
 * JSON.parse keeps the last of the two without a word; a reader in another language may keep the
 * first, and then two programs see two different files.
 */
export function findDuplicateKey(text: string): string | null {
  const seen = new Set<string>();
  let duplicate: string | null = null;
  scanJson(text, {
    key(path) {
      if (seen.has(path)) duplicate ??= path;
      seen.add(path);
    },
  });
  return duplicate === null ? null : pathInWords(duplicate);
}

/**
 * Writes `value` with two spaces of indentation, and numbers as `original` (a valid JSON text) spells
 * them where the value at the same place is still the same.
 *
 * JavaScript has one number type, so `0.0` would come back as `0`; readers with typed configurations
 * refuse an integer where they wrote a float.
 */
export function formatLike(value: JsonObject, original: string): string {
  const spelled = new Map<string, string>();
  scanJson(original, { number: (path, literal) => spelled.set(path, literal) });
  return `${write(value, "", "", spelled)}\n`;
}

function write(
  value: unknown,
  path: string,
  indent: string,
  spelled: ReadonlyMap<string, string>,
): string {
  const inner = `${indent}  `;
  if (typeof value === "number") {
    const literal = spelled.get(path);
    return literal !== undefined && Number(literal) === value ? literal : JSON.stringify(value);
  }
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    const items = value.map((v, i) => inner + write(v, `${path}/${i}`, inner, spelled));
    return `[\n${items.join(",\n")}\n${indent}]`;
  }
  if (isJsonObject(value)) {
    const items = Object.entries(value)
      .filter(([, v]) => v !== undefined)
      .map(([k, v]) => {
        const key = JSON.stringify(k);
        return `${inner}${key}: ${write(v, `${path}/${key}`, inner, spelled)}`;
      });
    return items.length === 0 ? "{}" : `{\n${items.join(",\n")}\n${indent}}`;
  }
  return JSON.stringify(value ?? null);
}

function pathInWords(path: string): string {
  // Paths look like /"a"/0/"b"; messages say a.0.b.
  return path
    .slice(1)
    .replace(/"((?:[^"\\]|\\.)*)"/g, "$1")
    .replaceAll("/", ".");
}
