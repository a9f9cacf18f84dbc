/** Bodies in, JSON and event streams out: what the server needs of HTTP. */

import type { IncomingMessage, ServerResponse } from "node:http";
import { RequestProblem } from "./problem.ts";

/** The JSON of a request. Throws: RequestProblem where it is too large or no JSON. */
export async function readJson(request: IncomingMessage, mostBytes: number): Promise<unknown> {
  const tooLarge = new RequestProblem(413, `the body has more than ${mostBytes} bytes`);
  if (Number(request.headers["content-length"] ?? 0) > mostBytes) throw tooLarge;
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > mostBytes) throw tooLarge;
    pieces.push(piece);
  }
  try {
    return JSON.parse(Buffer.concat(pieces).toString("utf8"));
  } catch {
    throw new RequestProblem(400, "the body is no JSON");
  }
}

export function sendJson(response: ServerResponse, status: number, body: object): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
  });
  response.end(text);
}

/** Server-sent events: one JSON object each, and a last word. */
export class EventStream {
  readonly #response: ServerResponse;

  constructor(response: ServerResponse) {
    this.#response = response;
    response.writeHead(200, {
      "content-type": "text/event-stream",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
  }

  /** Resolves when the client takes more. */
  async send(event: object): Promise<void> {
    await this.#write(`data: ${JSON.stringify(event)}\n\n`);
  }

  async end(): Promise<void> {
    await this.#write("data: [DONE]\n\n");
    this.#response.end();
  }

  #write(text: string): Promise<void> {
    const response = this.#response;
    if (response.destroyed || response.write(text)) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        response.off("drain", done);
        response.off("close", done);
        resolve();
      };
      response.on("drain", done);
      response.on("close", done);
    });
  }
}
