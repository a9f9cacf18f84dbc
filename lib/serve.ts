/** A model behind the HTTP interface that clients of the OpenAI API speak. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import * as path from "node:path";
import { AqError } from "./errors.ts";
import type { FinishReason } from "./generate/scheduler.ts";
import { type LoadedModel, type LoadOptions, load } from "./generate.ts";
import {
  type AnswerStyle,
  chatStyle,
  completionStyle,
  type FinishedText,
} from "./serve/answers.ts";
import { type ChatTemplate, loadChatTemplate } from "./serve/chat-template.ts";
import { EventStream, readJson, sendJson } from "./serve/http.ts";
import { problemJson, RequestProblem } from "./serve/problem.ts";
import { chatRequest, completionRequest, type TextRequest } from "./serve/requests.ts";
import { StopStrings } from "./serve/stop-strings.ts";

export interface ServeOptions extends LoadOptions {
  /** Folder of the model. */
  readonly model: string;
  /** What requests call the model. Default: the name of its folder. */
  readonly name?: string | undefined;
  /** Default 127.0.0.1: this machine alone. There is no access control. */
  readonly host?: string | undefined;
  /** Default 8080; 0 = any that is free. */
  readonly port?: number | undefined;
  /** Texts that wait for a place at most; more are refused with status 429. Default 64. */
  readonly queue?: number | undefined;
  /** Bytes of a request at most. Default 1 MiB. */
  readonly maxBody?: number | undefined;
}

/** A server that is up. */
export interface ModelServer {
  readonly url: string;
  readonly device: string;
  /** Stops listening, ends what is under way and frees the model. */
  close(): Promise<void>;
}

const [HOST, PORT, QUEUE, BODY, SLOTS] = ["127.0.0.1", 8080, 64, 2 ** 20, 8] as const;
const MAX_SEED = 2 ** 32;

/**
 * Loads a model and answers /v1/completions, /v1/chat/completions, /v1/models and /health. Requests are
 * computed together, as many as there are slots; the others wait in order.
 *
 * Throws: AqError for a model that cannot be loaded, AQ_ARG where the address cannot be used.
 */
export async function serve(options: ServeOptions): Promise<ModelServer> {
  const { model: dir, host = HOST, port = PORT, slots = SLOTS } = options;
  const template = loadChatTemplate(dir);
  const model = await load(dir, { ...options, slots });
  const app = new App(model, template, options);
  const server = createServer((request, response) => void app.handle(request, response));
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, host, resolve);
    });
  } catch (error) {
    await model.dispose();
    const { code } = error as NodeJS.ErrnoException;
    const why = code === "EADDRINUSE" ? "another program listens there" : String(code ?? error);
    throw new AqError(
      "AQ_ARG",
      `cannot listen on ${host}, port ${port}: ${why}; choose another with --port or --host`,
    );
  }
  const { address, port: own, family } = server.address() as AddressInfo;
  return {
    url: `http://${family === "IPv6" ? `[${address}]` : address}:${own}`,
    device: model.device,
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      await model.dispose();
      server.closeAllConnections();
      await closed;
    },
  };
}

class App {
  readonly #model: LoadedModel;
  readonly #template: ChatTemplate | undefined;
  readonly #name: string;
  readonly #queue: number;
  readonly #maxBody: number;
  readonly #created = Math.floor(Date.now() / 1000);

  constructor(model: LoadedModel, template: ChatTemplate | undefined, options: ServeOptions) {
    this.#model = model;
    this.#template = template;
    this.#name = options.name ?? path.basename(path.resolve(options.model));
    this.#queue = options.queue ?? QUEUE;
    this.#maxBody = options.maxBody ?? BODY;
  }

  /** Never rejects: whatever goes wrong is told to the client, or it has gone. */
  async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      await this.#route(request, response);
    } catch (error) {
      const problem = asProblem(error);
      if (response.headersSent) response.destroy();
      else if (!response.destroyed) {
        // What is left of a body that was refused is not read.
        if (!request.complete) response.setHeader("connection", "close");
        if (problem.status === 429) response.setHeader("retry-after", "1");
        sendJson(response, problem.status, problemJson(problem));
      }
    }
  }

  async #route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname } = new URL(request.url ?? "/", "http://host");
    const routes: Record<string, readonly [string, () => void | Promise<void>]> = {
      "/health": ["GET", () => sendJson(response, 200, { status: "ok", ...this.#model.load })],
      "/v1/models": [
        "GET",
        () => sendJson(response, 200, { object: "list", data: [this.#card()] }),
      ],
      "/v1/completions": ["POST", () => this.#complete(request, response)],
      "/v1/chat/completions": ["POST", () => this.#chat(request, response)],
    };
    const model = /^\/v1\/models\/(.+)$/.exec(pathname)?.[1];
    if (model !== undefined) {
      routes[pathname] = ["GET", () => sendJson(response, 200, this.#card(decoded(model)))];
    }
    const [method, answer] = Object.hasOwn(routes, pathname) ? (routes[pathname] ?? []) : [];
    if (!answer) throw new RequestProblem(404, `there is no ${pathname} here`);
    if (request.method !== method) throw new RequestProblem(405, `${pathname} takes ${method}`);
    await answer();
  }

  #card(model?: string): object {
    this.#known(model);
    return { id: this.#name, object: "model", created: this.#created, owned_by: "aq-native" };
  }

  async #complete(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const asked = completionRequest(await readJson(request, this.#maxBody));
    this.#known(asked.model);
    const prompts = asked.prompts.map((prompt) =>
      typeof prompt === "string" ? this.#model.encode(prompt) : prompt,
    );
    await this.#answer(response, asked, prompts, completionStyle(this.#name));
  }

  async #chat(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const asked = chatRequest(await readJson(request, this.#maxBody));
    this.#known(asked.model);
    if (!this.#template) {
      throw new RequestProblem(
        400,
        `${this.#name} has no chat template; use /v1/completions with a prompt of your own`,
      );
    }
    // The template has put the special tokens where they belong.
    const prompt = this.#model.encode(this.#template.render(asked.messages), { special: false });
    await this.#answer(response, asked, [prompt], chatStyle(this.#name));
  }

  /** A client that means another model than this one should not get this one's words. */
  #known(model: string | undefined): void {
    if (model === undefined || model === this.#name) return;
    const message = `there is no model ${JSON.stringify(model)} here, but ${JSON.stringify(this.#name)}`;
    throw new RequestProblem(404, message, "model", "model_not_found");
  }

  async #answer(
    response: ServerResponse,
    asked: TextRequest,
    prompts: readonly Int32Array[],
    style: AnswerStyle,
  ): Promise<void> {
    if (this.#model.load.waiting + prompts.length > this.#queue) {
      throw new RequestProblem(429, "too many requests wait already; try again later");
    }
    for (const prompt of prompts) this.#check(prompt);
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    let tokens = 0;
    let events: EventStream | undefined;
    const write = async (prompt: Int32Array, index: number): Promise<FinishedText> => {
      const stops = new StopStrings(asked.stop);
      let text = "";
      const give = async (piece: string): Promise<void> => {
        text += piece;
        if (asked.stream && piece !== "") await events?.send(style.piece(index, piece));
      };
      const run = this.#model.generate(prompt, {
        ...asked,
        seed: (asked.seed ?? Math.floor(Math.random() * MAX_SEED)) + index,
        signal: gone.signal,
      });
      let finish: FinishReason = "stop";
      while (!stops.found) {
        const { value, done } = await run.next();
        if (done) {
          finish = value;
          await give(stops.end());
          break;
        }
        if (value.id !== undefined) tokens++;
        // The head is sent with the first token: until then an error still has a status of its own.
        if (asked.stream && !events) {
          events = new EventStream(response);
          for (const i of prompts.keys()) {
            const first = style.first(i);
            if (first) await events.send(first);
          }
        }
        await give(stops.push(value.text));
      }
      await run.return("stop");
      if (asked.stream) {
        events ??= new EventStream(response);
        await events.send(style.last(index, finish));
      }
      return { text, finish };
    };
    const texts = await Promise.all(prompts.map(write)).catch((error) => {
      // One that failed takes the others with it: the answer is one.
      gone.abort();
      throw error;
    });
    const usage = { promptTokens: prompts.reduce((sum, { length }) => sum + length, 0), tokens };
    if (!asked.stream) {
      sendJson(response, 200, style.whole(texts, usage));
      return;
    }
    if (asked.streamUsage) await events?.send(style.usage(usage));
    await events?.end();
  }

  #check(prompt: Int32Array): void {
    const most = this.#model.maxLength - 1;
    if (prompt.length > most) {
      throw new RequestProblem(
        400,
        `the prompt has ${prompt.length} tokens, and with at least one to be written ${most} fit`,
        "prompt",
        "context_length_exceeded",
      );
    }
    if (prompt.length === 0) throw new RequestProblem(400, "the prompt is empty", "prompt");
    const outside = prompt.find((id) => id >= this.#model.vocabulary);
    if (outside !== undefined) {
      throw new RequestProblem(400, `the prompt has the id ${outside}, outside of the vocabulary`);
    }
  }
}

/** A part of a path as text; what is no text stays as it is. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function asProblem(error: unknown): RequestProblem {
  if (error instanceof RequestProblem) return error;
  if (error instanceof AqError) {
    return new RequestProblem(error.code === "AQ_STOPPED" ? 503 : 500, error.message);
  }
  return new RequestProblem(500, "the server failed");
}
