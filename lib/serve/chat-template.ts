/** The prompt of a chat, by the template that comes with a tokenizer. */

import * as path from "node:path";
import { Template } from "@huggingface/jinja";
import { hasFile, sourceFile } from "../checkpoint/source-files.ts";
import { readTextFile } from "../data/text.ts";
import { AqError } from "../errors.ts";
import { isJsonObject, type JsonObject, readJsonFile } from "../util/json.ts";
import { RequestProblem } from "./problem.ts";
import type { ChatMessage } from "./requests.ts";

const FILE = "chat_template.jinja";
const CONFIG = "tokenizer_config.json";
/** No template is nearly as long. */
const MOST_CHARACTERS = 2 ** 18;

export interface ChatTemplate {
  /** The text that the model is to write on. Throws: RequestProblem where the template refuses. */
  render(messages: readonly ChatMessage[]): string;
}

/** The template of a folder; undefined where it has none. Throws: AQ_FORMAT for one that is broken. */
export function loadChatTemplate(dir: string): ChatTemplate | undefined {
  const config: JsonObject = hasFile(dir, CONFIG) ? readJsonFile(sourceFile(dir, CONFIG)) : {};
  const source = hasFile(dir, FILE)
    ? readTextFile(sourceFile(dir, FILE))
    : templateOf(config["chat_template"]);
  if (source === undefined) return undefined;
  const where = path.join(dir, hasFile(dir, FILE) ? FILE : CONFIG);
  if (source.length > MOST_CHARACTERS) {
    throw new AqError(
      "AQ_FORMAT",
      `${where}: the chat template has ${source.length} characters, at most ${MOST_CHARACTERS} are read`,
    );
  }
  let template: Template;
  try {
    template = new Template(source);
  } catch (error) {
    throw new AqError("AQ_FORMAT", `${where}: the chat template is broken: ${reasonOf(error)}`);
  }
  const tokens = {
    bos_token: tokenOf(config["bos_token"]),
    eos_token: tokenOf(config["eos_token"]),
  };
  return {
    render(messages) {
      try {
        return template.render({ ...tokens, messages, add_generation_prompt: true });
      } catch (error) {
        // Templates refuse what they do not know, such as a role, by an error.
        throw new RequestProblem(400, `the chat template: ${reasonOf(error)}`, "messages");
      }
    },
  };
}

/** A text, or several by name, of which the default is meant. */
function templateOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return undefined;
  const named = value.find((item) => isJsonObject(item) && item["name"] === "default");
  const template = isJsonObject(named) ? named["template"] : undefined;
  return typeof template === "string" ? template : undefined;
}

/** A token is a text or an object with its text. */
function tokenOf(value: unknown): string {
  const text = isJsonObject(value) ? value["content"] : value;
  return typeof text === "string" ? text : "";
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
