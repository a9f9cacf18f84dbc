// The HTTP interface, over a real socket, with the trained fixture.
import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { load, type ModelServer, type ServeOptions, serve } from "../lib/index.ts";
import { StopStrings } from "../lib/serve/stop-strings.ts";
import { TRAINED } from "./helpers/fixture.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const PROMPT = "It was the best of times, it was";
const tempFolder = tempFolders();

let server: ModelServer | undefined;
afterEach(async () => {
  await server?.close();
  server = undefined;
});

async function start(options: Partial<ServeOptions> = {}): Promise<string> {
  server = await serve({ model: TRAINED, device: "cpu", port: 0, maxLength: 128, ...options });
  return server.url;
}

async function post(url: string, body: unknown): Promise<Response> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return fetch(url, { method: "POST", body: text });
}

// biome-ignore lint/suspicious/noExplicitAny: answers are looked at, not typed
type Json = any;

async function json(response: Response | Promise<Response>): Promise<Json> {
  return (await response).json();
}

/** The objects of an event stream. */
async function events(response: Response): Promise<Json[]> {
  const lines = (await response.text()).split("\n\n").filter((line) => line !== "");
  expect(lines.at(-1)).toBe("data: [DONE]");
  return lines.slice(0, -1).map((line) => JSON.parse(line.replace(/^data: /, "")));
}

/** What the model writes by itself. */
async function greedy(prompt: string, maxTokens: number): Promise<string> {
  const model = await load(TRAINED, { device: "cpu", maxLength: 128 });
  let text = "";
  for await (const piece of model.generate(prompt, { maxTokens })) text += piece.text;
  await model.dispose();
  return text;
}

/** The fixture with a chat template; files are links. */
function withTemplate(template: string): string {
  const dir = path.join(tempFolder(), "chatty");
  fs.mkdirSync(dir);
  for (const name of fs.readdirSync(TRAINED)) {
    if (name !== "tokenizer_config.json")
      fs.copyFileSync(path.join(TRAINED, name), path.join(dir, name));
  }
  const config = JSON.parse(fs.readFileSync(path.join(TRAINED, "tokenizer_config.json"), "utf8"));
  const text = JSON.stringify({ ...config, chat_template: template });
  fs.writeFileSync(path.join(dir, "tokenizer_config.json"), text);
  return dir;
}

describe("the server", () => {
  it("says what it is and how it is", async () => {
    const url = await start();
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
    expect(await json(fetch(`${url}/health`))).toEqual({ status: "ok", waiting: 0, active: 0 });
    const { data } = await json(fetch(`${url}/v1/models`));
    expect(data).toMatchObject([{ id: "llama-gqa-4m", object: "model" }]);
  });

  it("goes by the name that it is given", async () => {
    const url = await start({ name: "org/books 4 bits" });
    const { data } = await json(fetch(`${url}/v1/models`));
    expect(data[0].id).toBe("org/books 4 bits");
    const card = await json(fetch(`${url}/v1/models/${encodeURIComponent(data[0].id)}`));
    expect(card).toEqual(data[0]);
    const ask = { model: data[0].id, prompt: PROMPT, max_tokens: 2 };
    expect((await post(`${url}/v1/completions`, ask)).status).toBe(200);
  });

  it("completes a prompt, whole and in pieces", async () => {
    const expected = await greedy(PROMPT, 10);
    const url = `${await start()}/v1/completions`;
    const ask = { prompt: PROMPT, max_tokens: 10, temperature: 0 };
    const whole = await json(post(url, ask));
    expect(whole.choices).toMatchObject([{ index: 0, text: expected, finish_reason: "length" }]);
    expect(whole.usage.completion_tokens).toBe(10);
    expect(whole.usage.total_tokens).toBe(10 + whole.usage.prompt_tokens);
    const stream = await post(url, {
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(stream.headers.get("content-type")).toBe("text/event-stream");
    const pieces = await events(stream);
    expect(pieces.at(-1).usage).toEqual(whole.usage);
    const texts = pieces.slice(0, -1).map(({ choices }) => choices[0].text);
    expect(texts.join("")).toBe(expected);
    expect(texts.length).toBeGreaterThan(5);
    expect(pieces.at(-2).choices[0].finish_reason).toBe("length");
  });

  it("completes several prompts at once, as ids too", async () => {
    const url = `${await start({ slots: 3 })}/v1/completions`;
    const model = await load(TRAINED, { device: "cpu" });
    const prompts = [PROMPT, "Call me", "The", "Sir, I have"].map((p) => [...model.encode(p)]);
    await model.dispose();
    const ask = { prompt: prompts, max_tokens: 6, temperature: 0.7, seed: 5 };
    const { choices } = await json(post(url, ask));
    expect(choices.map(({ index }: Json) => index)).toEqual([0, 1, 2, 3]);
    expect(await json(post(url, ask))).toMatchObject({ choices });
  });

  it("stops before a stop string, which is not given out", async () => {
    const text = await greedy(PROMPT, 24);
    const stop = text.slice(8, 11);
    const url = `${await start()}/v1/completions`;
    const ask = { prompt: PROMPT, max_tokens: 24, temperature: 0, stop: [stop, "never"] };
    const { choices } = await json(post(url, ask));
    const expected = text.slice(0, text.indexOf(stop));
    expect(choices).toMatchObject([{ text: expected, finish_reason: "stop" }]);
    const pieces = await events(await post(url, { ...ask, stream: true }));
    expect(pieces.map(({ choices: [first] }) => first.text).join("")).toBe(expected);
  });

  it("chats by the template of the tokenizer", async () => {
    const template =
      "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" +
      "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}answer:{% endif %}";
    const dir = withTemplate(template);
    const expected = await greedy("user: How are you?\nanswer:", 8);
    const url = `${await start({ model: dir })}/v1/chat/completions`;
    const messages = [{ role: "user", content: [{ type: "text", text: "How are you?" }] }];
    const ask = { messages, max_completion_tokens: 8, temperature: 0 };
    const { choices, object } = await json(post(url, ask));
    expect(object).toBe("chat.completion");
    expect(choices).toMatchObject([{ message: { role: "assistant", content: expected } }]);
    const pieces = await events(await post(url, { ...ask, stream: true }));
    expect(pieces[0].choices[0].delta.role).toBe("assistant");
    expect(pieces.map(({ choices: [first] }) => first.delta.content ?? "").join("")).toBe(expected);
    const refused = await post(url, { ...ask, messages: [{ role: "tool", content: "x" }] });
    expect(refused.status).toBe(400);
    expect((await json(refused)).error.message).toContain("no tools");
  });

  it("refuses what it does not understand, in one sentence", async () => {
    const url = await start({ maxBody: 2000 });
    const completions = `${url}/v1/completions`;
    const long = Array.from({ length: 200 }, () => 5);
    for (const [body, status, words] of [
      [{ prompt: "a", model: "gpt-4" }, 404, 'no model "gpt-4" here, but "llama-gqa-4m"'],
      [{ prompt: "a", model: 4 }, 400, "model must be"],
      ["{", 400, "no JSON"],
      ["[]", 400, "JSON object"],
      [{}, 400, "prompt must be"],
      [{ prompt: "" }, 400, "prompt is empty"],
      [{ prompt: long }, 400, "200 tokens"],
      [{ prompt: [4, 1e6] }, 400, "vocabulary"],
      [{ prompt: "a", temperature: -1 }, 400, "temperature"],
      [{ prompt: "a", max_tokens: 0 }, 400, "max_tokens"],
      [{ prompt: "a", n: 2 }, 400, "n must be 1"],
      [{ prompt: "a", stop: ["", "b"] }, 400, "stop"],
      [{ prompt: "a", suffix: "b" }, 400, "suffix"],
      [{ prompt: "a".repeat(3000) }, 413, "2000 bytes"],
    ] as const) {
      const response = await post(completions, body);
      expect(response.status, words).toBe(status);
      expect((await json(response)).error.message).toContain(words);
    }
    expect((await json(post(completions, { prompt: long }))).error.code).toBe(
      "context_length_exceeded",
    );
    expect((await json(post(completions, { prompt: "a", model: "b" }))).error.code).toBe(
      "model_not_found",
    );
    expect((await fetch(`${url}/v1/models/b`)).status).toBe(404);
    expect((await fetch(completions)).status).toBe(405);
    expect((await fetch(`${url}/v2`)).status).toBe(404);
    expect((await post(`${url}/v1/chat/completions`, { messages: [] })).status).toBe(400);
    const none = await json(
      post(`${url}/v1/chat/completions`, { messages: [{ role: "user", content: "a" }] }),
    );
    expect(none.error.message).toContain("no chat template");
  });

  it("frees the place of a client that went away, and lets others in", async () => {
    const url = await start({ slots: 1, queue: 1 });
    const ask = { prompt: PROMPT, max_tokens: 100, temperature: 0, stream: true };
    const gone = new AbortController();
    const first = await fetch(`${url}/v1/completions`, {
      method: "POST",
      body: JSON.stringify(ask),
      signal: gone.signal,
    });
    await first.body?.getReader().read();
    const second = post(`${url}/v1/completions`, { ...ask, max_tokens: 4, stream: false });
    while ((await json(fetch(`${url}/health`))).waiting !== 1) await setTimeout(2);
    const third = await post(`${url}/v1/completions`, ask);
    expect(third.status).toBe(429);
    await third.body?.cancel();
    gone.abort();
    expect((await json(second)).usage.completion_tokens).toBe(4);
    expect(await json(fetch(`${url}/health`))).toMatchObject({ waiting: 0, active: 0 });
  });

  it("says when its address is taken", async () => {
    const url = await start();
    const port = Number(new URL(url).port);
    await expect(serve({ model: TRAINED, device: "cpu", port })).rejects.toMatchObject({
      code: "AQ_ARG",
      message: expect.stringContaining("another program listens there"),
    });
  });
});

describe("stop strings", () => {
  it("end a text before the first of them, however it is cut", () => {
    const text = "one two three four";
    for (let a = 0; a <= text.length; a++) {
      for (let b = a; b <= text.length; b++) {
        const stops = new StopStrings(["thr", "two t", "twx"]);
        const pieces = [text.slice(0, a), text.slice(a, b), text.slice(b)];
        const given = pieces.map((piece) => stops.push(piece)).join("") + stops.end();
        expect(given).toBe("one ");
        expect(stops.found).toBe(true);
      }
    }
    const none = new StopStrings(["xyz"]);
    expect(none.push("a x") + none.push("y") + none.end()).toBe("a xy");
  });
});
