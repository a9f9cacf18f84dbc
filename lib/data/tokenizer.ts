/** Text to token ids and back, by the tokenizer.json of a checkpoint folder. */

import * as path from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { hasFile, sourceFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { type JsonObject, readJsonFile } from "../util/json.ts";
import { createBpeCutter } from "./bpe-cuts.ts";

/** What the tokenizer calls to split a stretch of normalized text into words. */
type Splitter = (text: string, options?: unknown) => string[];

/** The tokenizer of a checkpoint. */
export class TextTokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #where: string;

  /** Used by `loadTokenizer`. */
  constructor(tokenizer: Tokenizer, where: string) {
    this.#tokenizer = tokenizer;
    this.#where = where;
  }

  /**
   * Ids of a whole text, without special tokens at its ends. About a second per million characters.
   *
   * Throws: AQ_FORMAT when the tokenizer has no token for a part of the text.
   */
  encode(text: string): Int32Array {
    return this.#encode(text, false);
  }

  /** Ids of a text that a model is to write on, with the tokens that its tokenizer puts around it. */
  encodePrompt(text: string): Int32Array {
    return this.#encode(text, true);
  }

  #encode(text: string, special: boolean): Int32Array {
    if (text === "" && !special) return new Int32Array(0);
    // Typed as numbers, but a word without a token and without an unknown token comes out undefined.
    const ids: (number | undefined)[] = this.#tokenizer.encode(text, {
      add_special_tokens: special,
    }).ids;
    const result = new Int32Array(ids.length);
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (id === undefined) {
        throw new AqError(
          "AQ_FORMAT",
          `${this.#where} has no token for a part of the text, and no unknown token to stand for it.`,
        );
      }
      result[i] = id;
    }
    return result;
  }

  /** The text of some ids, special tokens spelled out. */
  decode(ids: Iterable<number>): string {
    const list = Array.from(ids);
    if (list.length === 0) return "";
    return this.#tokenizer.decode(list, {
      skip_special_tokens: false,
      clean_up_tokenization_spaces: false,
    });
  }
}

/**
 * Loads the tokenizer of a checkpoint folder (tokenizer.json and, if there, tokenizer_config.json).
 *
 * Throws: AQ_FILE when tokenizer.json is missing, AQ_FORMAT when it is malformed, AQ_MODEL when it uses
 * something that is not supported.
 */
export function loadTokenizer(dir: string): TextTokenizer {
  const where = path.join(dir, "tokenizer.json");
  if (!hasFile(dir, "tokenizer.json")) {
    const advice = hasFile(dir, "tokenizer.model")
      ? "only tokenizer.model; save the tokenizer again with transformers' fast tokenizer (save_pretrained)"
      : "which the texts are encoded with; copy it from the model's repository";
    throw new AqError("AQ_FILE", `${dir} has no tokenizer.json, ${advice}.`);
  }
  const json = readJsonFile(sourceFile(dir, "tokenizer.json"));
  const config = hasFile(dir, "tokenizer_config.json")
    ? readJsonFile(sourceFile(dir, "tokenizer_config.json"))
    : {};
  let tokenizer: Tokenizer;
  try {
    tokenizer = new Tokenizer({ added_tokens: [], ...json }, config);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new AqError("AQ_MODEL", `${where} cannot be used: ${reason}.`, { cause: error });
  }
  cutLongWords(tokenizer, json);
  return new TextTokenizer(tokenizer, where);
}

/** Puts the cutter behind the tokenizer's own splitter; word by word tokenizers hardly notice it. */
function cutLongWords(tokenizer: Tokenizer, json: JsonObject): void {
  const cutter = createBpeCutter(json["model"]);
  if (!cutter) return;
  const own = tokenizer.pre_tokenizer as unknown as Splitter | null;
  const splitter: Splitter = (text, options) =>
    (own ? own(text, options) : [text]).flatMap((word) =>
      word.length > LONG_WORD ? cutter(word) : [word],
    );
  tokenizer.pre_tokenizer = splitter as unknown as Tokenizer["pre_tokenizer"];
}

/** Characters from which a word is worth cutting. */
const LONG_WORD = 64;
