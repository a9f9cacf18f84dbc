/**
 * How a byte-level tokenizer splits a text into words, by the name that llama.cpp has for it. Its
 * converter tells them apart by the hash of a text's tokens; here it is done by the splitter's own
 * description in tokenizer.json.
 */

import { isJsonObject } from "../util/json.ts";

export interface Splitter {
  readonly name: string;
  /** llama.cpp has no name that is known to mean the same. */
  readonly isGuess: boolean;
}

/** Parts of the expressions that differ: how many digits make a word. */
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const WORDS = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const REST = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/**
 * Mistral's newer tokenizers cut where a small letter is followed by a capital one; llama.cpp, under the
 * name that its own converter gives them, takes letters beyond ASCII for either.
 */
const OUTSIDE = "[^\\r\\n\\p{L}\\p{N}]?";
const CAPITAL = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const SMALL = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const CASES = `${OUTSIDE}${CAPITAL}*${SMALL}+|${OUTSIDE}${CAPITAL}+${SMALL}*`;
const EXPRESSIONS: ReadonlyMap<string, string> = new Map([
  [`${CONTRACTIONS}|${WORDS}|\\p{N}{1,3}|${REST}`, "llama-bpe"],
  [`${CONTRACTIONS}|${WORDS}|\\p{N}|${REST}`, "qwen2"],
  [`${CASES}|\\p{N}|${REST.replace("[\\r\\n]*", "[\\r\\n/]*")}`, "tekken"],
]);

/** The splitter of a byte-level tokenizer; null for one that is not byte-level. */
export function splitterName(preTokenizer: unknown): Splitter | null {
  const parts = partsOf(preTokenizer);
  const bytes = parts.find(({ type }) => type === "ByteLevel");
  if (!bytes) return null;
  const others = parts.filter((part) => part !== bytes);
  const known = (name: string): Splitter => ({ name, isGuess: false });
  // ByteLevel's own expression is the one of GPT-2, and on unless it is switched off.
  if (bytes["use_regex"] !== false) {
    if (others.length === 0) return known("gpt-2");
    const [first] = others;
    if (
      others.length === 1 &&
      first?.["type"] === "Digits" &&
      first["individual_digits"] === true
    ) {
      return known("smollm");
    }
  } else if (others.length === 1 && others[0]?.["type"] === "Split") {
    const pattern = others[0]["pattern"];
    const text = isJsonObject(pattern) ? pattern["Regex"] : undefined;
    const name = typeof text === "string" ? EXPRESSIONS.get(text) : undefined;
    if (name !== undefined) return known(name);
  }
  return { name: "default", isGuess: true };
}

function partsOf(preTokenizer: unknown): Record<string, unknown>[] {
  if (!isJsonObject(preTokenizer)) return [];
  if (preTokenizer["type"] !== "Sequence") return [preTokenizer];
  const list = preTokenizer["pretokenizers"];
  return Array.isArray(list) ? list.flatMap(partsOf) : [];
}
