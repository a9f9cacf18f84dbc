/** The JSON of answers, as the OpenAI API has it. */

import { randomUUID } from "node:crypto";
import type { FinishReason } from "../generate/scheduler.ts";

export interface Usage {
  readonly promptTokens: number;
  readonly tokens: number;
}

/** One kind of answer: whole, and in pieces. */
export interface AnswerStyle {
  whole(texts: readonly FinishedText[], usage: Usage): object;
  /** What a stream begins with for each text, if anything. */
  first(index: number): object | undefined;
  piece(index: number, text: string): object;
  last(index: number, finish: FinishReason): object;
  usage(usage: Usage): object;
}

export interface FinishedText {
  readonly text: string;
  readonly finish: FinishReason;
}

function usageJson({ promptTokens, tokens }: Usage): object {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: tokens,
    total_tokens: promptTokens + tokens,
  };
}

/** What all objects of one answer begin with. */
function heading(prefix: string, object: string, model: string): object {
  return {
    id: `${prefix}-${randomUUID()}`,
    object,
    created: Math.floor(Date.now() / 1000),
    model,
  };
}

export function completionStyle(model: string): AnswerStyle {
  const head = heading("cmpl", "text_completion", model);
  const choice = (index: number, text: string, finish: FinishReason | null): object => ({
    index,
    text,
    logprobs: null,
    finish_reason: finish,
  });
  return {
    whole: (texts, usage) => ({
      ...head,
      choices: texts.map(({ text, finish }, index) => choice(index, text, finish)),
      usage: usageJson(usage),
    }),
    first: () => undefined,
    piece: (index, text) => ({ ...head, choices: [choice(index, text, null)] }),
    last: (index, finish) => ({ ...head, choices: [choice(index, "", finish)] }),
    usage: (usage) => ({ ...head, choices: [], usage: usageJson(usage) }),
  };
}

export function chatStyle(model: string): AnswerStyle {
  const head = heading("chatcmpl", "chat.completion", model);
  const chunk = { ...head, object: "chat.completion.chunk" };
  const delta = (index: number, content: object, finish: FinishReason | null): object => ({
    ...chunk,
    choices: [{ index, delta: content, logprobs: null, finish_reason: finish }],
  });
  return {
    whole: (texts, usage) => ({
      ...head,
      choices: texts.map(({ text, finish }, index) => ({
        index,
        message: { role: "assistant", content: text, refusal: null },
        logprobs: null,
        finish_reason: finish,
      })),
      usage: usageJson(usage),
    }),
    first: (index) => delta(index, { role: "assistant", content: "" }, null),
    piece: (index, text) => delta(index, { content: text }, null),
    last: (index, finish) => delta(index, {}, finish),
    usage: (usage) => ({ ...chunk, choices: [], usage: usageJson(usage) }),
  };
}
