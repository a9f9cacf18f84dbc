/** Reads the JSON of a request: what is asked for, with the defaults of the OpenAI API. */

import { isJsonObject, type JsonObject } from "../util/json.ts";
import { RequestProblem } from "./problem.ts";

/** What both kinds of request have. */
export interface TextRequest {
  /** Whose text is asked for; absent: whatever is served. */
  readonly model: string | undefined;
  readonly maxTokens: number | undefined;
  readonly temperature: number;
  readonly topP: number;
  /** Absent: a seed of the server's choice. */
  readonly seed: number | undefined;
  readonly stop: readonly string[];
  readonly stream: boolean;
  /** A last piece of the stream says how many tokens there were. */
  readonly streamUsage: boolean;
}

export interface CompletionRequest extends TextRequest {
  /** Texts, or ids, each of which is written on. */
  readonly prompts: readonly (string | Int32Array)[];
}

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

export interface ChatRequest extends TextRequest {
  readonly messages: readonly ChatMessage[];
}

/** Limits against requests that nobody sends in earnest. */
const MOST_PROMPTS = 64;
const MOST_STOPS = 4;
const MOST_STOP_LENGTH = 256;
/** What the API writes where a completion does not say how much. */
const COMPLETION_TOKENS = 16;

export function completionRequest(json: unknown): CompletionRequest {
  const body = objectOf(json);
  refuse(body, ["suffix", "best_of", "logprobs", "echo"]);
  const request = textRequest(body, "max_tokens");
  return {
    ...request,
    maxTokens: request.maxTokens ?? COMPLETION_TOKENS,
    prompts: promptsOf(body["prompt"]),
  };
}

export function chatRequest(json: unknown): ChatRequest {
  const body = objectOf(json);
  refuse(body, ["tools", "functions", "logprobs", "response_format"]);
  const key = body["max_completion_tokens"] === undefined ? "max_tokens" : "max_completion_tokens";
  const messages = body["messages"];
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new RequestProblem(400, "messages must be a list of at least one message", "messages");
  }
  return { ...textRequest(body, key), messages: messages.map(messageOf) };
}

function objectOf(json: unknown): JsonObject {
  if (isJsonObject(json)) return json;
  throw new RequestProblem(400, "the body must be a JSON object");
}

/** Fields that would change the answer and are not known here; null and false ask for nothing. */
function refuse(body: JsonObject, fields: readonly string[]): void {
  for (const field of fields) {
    const value = body[field];
    if (value === undefined || value === null || value === false) continue;
    throw new RequestProblem(400, `${field} is not supported`, field);
  }
}

function textRequest(body: JsonObject, maxTokensKey: string): TextRequest {
  if ((body["n"] ?? 1) !== 1) throw new RequestProblem(400, "n must be 1", "n");
  const usage = body["stream_options"];
  return {
    model: modelOf(body["model"]),
    maxTokens: numberOf(body, maxTokensKey, { min: 1, whole: true }),
    temperature: numberOf(body, "temperature", { min: 0, max: 2 }) ?? 1,
    topP: numberOf(body, "top_p", { min: Number.MIN_VALUE, max: 1 }) ?? 1,
    seed: numberOf(body, "seed", { min: Number.MIN_SAFE_INTEGER, whole: true }),
    stop: stopsOf(body["stop"]),
    stream: booleanOf(body, "stream"),
    streamUsage: isJsonObject(usage) && usage["include_usage"] === true,
  };
}

interface Range {
  readonly min: number;
  readonly max?: number;
  readonly whole?: boolean;
}

function numberOf(
  body: JsonObject,
  key: string,
  { min, max = Number.MAX_SAFE_INTEGER, whole = false }: Range,
): number | undefined {
  const value = body[key];
  if (value === undefined || value === null) return undefined;
  const fits = typeof value === "number" && value >= min && value <= max;
  if (fits && (!whole || Number.isInteger(value))) return value;
  const most = max === Number.MAX_SAFE_INTEGER ? "" : ` and at most ${max}`;
  const least = min === Number.MIN_VALUE ? "above 0" : `of at least ${min}`;
  const kind = whole ? "a whole number" : "a number";
  throw new RequestProblem(400, `${key} must be ${kind} ${least}${most}`, key);
}

function booleanOf(body: JsonObject, key: string): boolean {
  const value = body[key] ?? false;
  if (typeof value === "boolean") return value;
  throw new RequestProblem(400, `${key} must be true or false`, key);
}

function modelOf(value: unknown): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  throw new RequestProblem(400, "model must be a text", "model");
}

function stopsOf(value: unknown): readonly string[] {
  if (value === undefined || value === null) return [];
  const stops = Array.isArray(value) ? value : [value];
  const fits = stops.every(
    (stop) => typeof stop === "string" && stop !== "" && stop.length <= MOST_STOP_LENGTH,
  );
  if (fits && stops.length <= MOST_STOPS) return stops;
  throw new RequestProblem(
    400,
    `stop must be a text or up to ${MOST_STOPS} of them, of 1 to ${MOST_STOP_LENGTH} characters`,
    "stop",
  );
}

function promptsOf(value: unknown): readonly (string | Int32Array)[] {
  if (typeof value === "string") return [value];
  if (isIds(value)) return [Int32Array.from(value)];
  const known =
    Array.isArray(value) &&
    value.length > 0 &&
    value.length <= MOST_PROMPTS &&
    value.every((prompt) => typeof prompt === "string" || isIds(prompt));
  if (known) {
    return value.map((prompt) =>
      typeof prompt === "string" ? prompt : Int32Array.from(prompt as number[]),
    );
  }
  throw new RequestProblem(
    400,
    `prompt must be a text, a list of token ids, or up to ${MOST_PROMPTS} of either`,
    "prompt",
  );
}

function isIds(value: unknown): value is number[] {
  const isId = (id: unknown): boolean => Number.isInteger(id) && (id as number) >= 0;
  return Array.isArray(value) && value.length > 0 && value.every(isId);
}

/** Content is a text, or parts of which all are texts. */
function messageOf(value: unknown, index: number): ChatMessage {
  const param = `messages[${index}]`;
  if (!isJsonObject(value) || typeof value["role"] !== "string") {
    throw new RequestProblem(400, `${param} must have a role and a content`, param);
  }
  const content = value["content"];
  const parts = Array.isArray(content) ? content : [{ type: "text", text: content }];
  const texts = parts.map((part) => {
    const text = isJsonObject(part) && part["type"] === "text" ? part["text"] : undefined;
    if (typeof text === "string") return text;
    throw new RequestProblem(400, `${param}.content must be a text, or parts of text`, param);
  });
  return { role: value["role"], content: texts.join("") };
}
