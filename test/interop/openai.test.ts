// Our server, asked by the client that most programs use.
import * as fs from "node:fs";
import * as path from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, serve } from "../../lib/index.ts";
import { TRAINED } from "../helpers/fixture.ts";
import { sharedFolders } from "../helpers/temp-folder.ts";
import { written } from "./ours.ts";

const PROMPT = "It was the best of times, it was";
const TOKENS = 24;
const TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}";

const folder = sharedFolders();
let server: ModelServer;
let client: OpenAI;
let model = "";
let expected = "";

/** The fixture, with a template that gives the message as it is. */
function withTemplate(): string {
  const dir = path.join(folder("openai"), "books");
  fs.cpSync(TRAINED, dir, { recursive: true });
  const file = path.join(dir, "tokenizer_config.json");
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  fs.writeFileSync(file, JSON.stringify({ ...config, chat_template: TEMPLATE }));
  return dir;
}

beforeAll(async () => {
  const dir = withTemplate();
  model = path.basename(dir);
  expected = (await written(dir, [PROMPT], TOKENS))[0]?.text ?? "";
  server = await serve({ model: dir, device: "cpu", port: 0, maxLength: 256 });
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
});

afterAll(() => server.close());

const ask = { prompt: PROMPT, max_tokens: TOKENS, temperature: 0 };
const messages = [{ role: "user" as const, content: PROMPT }];

describe("the openai client", () => {
  it("lists the model and finds it by its name", async () => {
    const names: string[] = [];
    for await (const { id } of client.models.list()) names.push(id);
    expect(names).toEqual([model]);
    expect((await client.models.retrieve(model)).owned_by).toBe("aq-native");
  });

  it("gets a completion, whole and as a stream", async () => {
    const whole = await client.completions.create({ model, ...ask });
    expect(whole.choices[0]).toMatchObject({ text: expected, finish_reason: "length" });
    expect(whole.usage?.completion_tokens).toBe(TOKENS);
    const stream = await client.completions.create({ model, ...ask, stream: true });
    let text = "";
    for await (const { choices } of stream) text += choices[0]?.text ?? "";
    expect(text).toBe(expected);
  });

  it("chats, whole and as a stream that counts its tokens", async () => {
    const chat = { model, messages, max_completion_tokens: TOKENS, temperature: 0 };
    const whole = await client.chat.completions.create(chat);
    const said = whole.choices[0]?.message;
    expect(said?.role).toBe("assistant");
    const options = { stream: true, stream_options: { include_usage: true } } as const;
    let text = "";
    let tokens = 0;
    for await (const { choices, usage } of await client.chat.completions.create({
      ...chat,
      ...options,
    })) {
      text += choices[0]?.delta.content ?? "";
      tokens = usage?.completion_tokens ?? tokens;
    }
    expect(text).toBe(said?.content);
    expect(tokens).toBe(TOKENS);
    const helper = client.chat.completions.stream(chat);
    expect(await helper.finalContent()).toBe(text);
  });

  it("leaves in the middle of a stream, and the place is free", async () => {
    const stream = await client.completions.create({
      model,
      prompt: PROMPT,
      max_tokens: 200,
      stream: true,
    });
    for await (const _ of stream) break;
    const active = async () => {
      const health = await (await fetch(`${server.url}/health`)).json();
      return (health as { active: number }).active;
    };
    await expect.poll(active).toBe(0);
  });

  it("gets the errors that it has names for", async () => {
    const long = Array.from({ length: 300 }, () => 5);
    for (const [request, kind, code] of [
      [{ ...ask, model: "gpt-4" }, OpenAI.NotFoundError, "model_not_found"],
      [{ ...ask, model, prompt: long }, OpenAI.BadRequestError, "context_length_exceeded"],
      [{ ...ask, model, temperature: 3 }, OpenAI.BadRequestError, null],
    ] as const) {
      const error = await client.completions.create(request).catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(kind);
      expect((error as InstanceType<typeof OpenAI.APIError>).code).toBe(code);
    }
  });
});
