/**
 * The tokenizer of a model as keys of a GGUF file. llama.cpp knows two kinds that LLaMA models have:
 * byte-level BPE ("gpt2", with its merges and the name of its splitter) and SentencePiece's BPE
 * ("llama", with a score for each token: the higher one is merged first).
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { hasFile, sourceFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { isJsonObject, type JsonObject, readJsonFile } from "../util/json.ts";
import type { GgufValue } from "./gguf-file.ts";
import { endTokens, specialId } from "./gguf-special.ts";
import { splitterName } from "./gguf-splitter.ts";

const KIND = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;
/** Of tokens that no merge makes: merged last, if at all. */
const LAST_SCORE = -1e6;
const ADDED_SCORE = -1000;

export interface GgufTokenizer {
  readonly keys: ReadonlyMap<string, GgufValue>;
  readonly notes: readonly string[];
}

interface Token {
  readonly text: string;
  readonly kind: number;
  readonly score: number;
}

/**
 * Reads the tokenizer of a folder; its tokens are filled up to the rows of the embedding.
 *
 * Throws: AQ_FILE without a tokenizer.json, AQ_MODEL for one that llama.cpp has no kind for.
 */
export function ggufTokenizer(dir: string, vocabulary: number, config: JsonObject): GgufTokenizer {
  if (!hasFile(dir, "tokenizer.json")) {
    throw new AqError(
      "AQ_FILE",
      `${dir} has no tokenizer.json, and a GGUF file holds the tokenizer; copy it from the model's repository`,
    );
  }
  const where = path.join(dir, "tokenizer.json");
  const json = readJsonFile(sourceFile(dir, "tokenizer.json"));
  const settings = hasFile(dir, "tokenizer_config.json")
    ? readJsonFile(sourceFile(dir, "tokenizer_config.json"))
    : {};
  const model = json["model"];
  if (!isJsonObject(model) || model["type"] !== "BPE" || !isJsonObject(model["vocab"])) {
    const type = isJsonObject(model) ? JSON.stringify(model["type"]) : "no model";
    throw new AqError(
      "AQ_MODEL",
      `${where} is of the kind ${type}, and a GGUF file as it is written here holds BPE; write another format`,
    );
  }
  const merges = mergesOf(model["merges"], where);
  const splitter = splitterName(json["pre_tokenizer"]);
  const notes: string[] = [];
  const keys = new Map<string, GgufValue>();
  const isBytes = splitter !== null;
  keys.set("tokenizer.ggml.model", { type: "string", value: isBytes ? "gpt2" : "llama" });
  if (splitter?.isGuess) {
    notes.push(
      "llama.cpp has no name for the way in which this tokenizer splits words, so the file says default: texts may be cut into other tokens",
    );
  }
  keys.set("tokenizer.ggml.pre", { type: "string", value: splitter?.name ?? "default" });
  const tokens = tokensOf(json, model, vocabulary, where, isBytes ? null : scoresOf(merges));
  keys.set("tokenizer.ggml.tokens", { type: "strings", value: tokens.map(({ text }) => text) });
  if (!isBytes) {
    keys.set("tokenizer.ggml.scores", { type: "f32s", value: tokens.map(({ score }) => score) });
  }
  keys.set("tokenizer.ggml.token_type", { type: "i32s", value: tokens.map(({ kind }) => kind) });
  if (isBytes) {
    const joined = merges.map(([left, right]) => `${left} ${right}`);
    keys.set("tokenizer.ggml.merges", { type: "strings", value: joined });
  }
  addSpecial(keys, { json, settings, config, tokens });
  const template = templateOf(dir, settings);
  if (template !== null) keys.set("tokenizer.chat_template", { type: "string", value: template });
  return { keys, notes };
}

function mergesOf(merges: unknown, where: string): [string, string][] {
  const list = Array.isArray(merges) ? merges : [];
  return list.map((merge: unknown) => {
    // A pair as one text is cut at its only space.
    const pair = typeof merge === "string" ? merge.split(" ", 2) : merge;
    if (Array.isArray(pair) && typeof pair[0] === "string" && typeof pair[1] === "string") {
      return [pair[0], pair[1]];
    }
    throw new AqError("AQ_FORMAT", `${where} has a merge that is no pair of texts.`);
  });
}

/** A token's score: how early it is merged. */
function scoresOf(merges: readonly (readonly [string, string])[]): ReadonlyMap<string, number> {
  const scores = new Map<string, number>();
  for (const [left, right] of merges) {
    const token = left + right;
    if (!scores.has(token)) scores.set(token, -scores.size);
  }
  return scores;
}

function tokensOf(
  json: JsonObject,
  model: JsonObject,
  vocabulary: number,
  where: string,
  scores: ReadonlyMap<string, number> | null,
): Token[] {
  const tokens: (Token | undefined)[] = new Array<Token | undefined>(vocabulary).fill(undefined);
  const put = (id: unknown, token: Token): void => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= vocabulary) {
      throw new AqError(
        "AQ_MODEL",
        `${where} has the token ${JSON.stringify(token.text)} as number ${String(id)}, and the embedding has ${vocabulary} rows; the two do not belong together`,
      );
    }
    tokens[id] = token;
  };
  for (const [text, id] of Object.entries(model["vocab"] as JsonObject)) {
    put(id, { text, kind: kindOf(text, model, scores !== null), score: scoreOf(text, scores) });
  }
  for (const added of Array.isArray(json["added_tokens"]) ? json["added_tokens"] : []) {
    if (!isJsonObject(added) || typeof added["content"] !== "string") continue;
    const text = added["content"];
    const isUnknown = text === model["unk_token"];
    const kind = added["special"] === true ? KIND.control : KIND.userDefined;
    put(added["id"], { text, kind: isUnknown ? KIND.unknown : kind, score: ADDED_SCORE });
  }
  return tokens.map(
    (token, id) => token ?? { text: `[PAD${id}]`, kind: KIND.unused, score: ADDED_SCORE },
  );
}

function kindOf(text: string, model: JsonObject, isPieces: boolean): number {
  if (text === model["unk_token"]) return KIND.unknown;
  return isPieces && /^<0x[0-9A-F]{2}>$/.test(text) ? KIND.byte : KIND.normal;
}

/** Single characters are where merging starts, and no merge makes them. */
function scoreOf(text: string, scores: ReadonlyMap<string, number> | null): number {
  return scores?.get(text) ?? ([...text].length <= 1 ? 0 : LAST_SCORE);
}

function addSpecial(
  keys: Map<string, GgufValue>,
  parts: {
    readonly json: JsonObject;
    readonly settings: JsonObject;
    readonly config: JsonObject;
    readonly tokens: readonly Token[];
  },
): void {
  const ids = new Map(parts.tokens.map(({ text }, id) => [text, id]));
  const names = { bos: "bos", eos: "eos", unk: "unknown", pad: "padding" } as const;
  const found: { bos?: number; eos?: number } = {};
  for (const [short, long] of Object.entries(names)) {
    const id = specialId(short, parts.settings, parts.config, ids);
    if (id === undefined) continue;
    keys.set(`tokenizer.ggml.${long}_token_id`, { type: "u32", value: id });
    if (short === "bos" || short === "eos") found[short] = id;
  }
  const ends = endTokens(parts.json, parts.settings, found, ids);
  keys.set("tokenizer.ggml.add_bos_token", { type: "bool", value: ends.first });
  keys.set("tokenizer.ggml.add_eos_token", { type: "bool", value: ends.last });
  keys.set("tokenizer.ggml.add_space_prefix", { type: "bool", value: ends.space });
}

function templateOf(dir: string, settings: JsonObject): string | null {
  const inSettings = settings["chat_template"];
  if (typeof inSettings === "string") return inSettings;
  if (Array.isArray(inSettings)) {
    for (const named of inSettings) {
      if (!isJsonObject(named) || named["name"] !== "default") continue;
      if (typeof named["template"] === "string") return named["template"];
    }
  }
  if (!hasFile(dir, "chat_template.jinja")) return null;
  return fs.readFileSync(sourceFile(dir, "chat_template.jinja"), "utf8");
}
