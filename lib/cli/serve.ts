/** `aq-native serve`: up until Ctrl-C. */
import type { ServeOptions } from "../serve.ts";
import type { ApiLoader } from "./api.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { Screen } from "./screen.ts";
import { stopOnSignals } from "./stop.ts";

export const SERVE_EXAMPLES: readonly [string, string][] = [
  ["answer on this machine", "--model ./model-w4a4"],
  ["for a network that you trust", "--model ./model-w4a4 --host 0.0.0.0 --port 8000"],
];

export async function runServe(
  options: ServeOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const api = await load();
  const stop = stopOnSignals(io.stderr);
  const stopped = new Promise<void>((resolve) => {
    stop.signal.addEventListener("abort", () => resolve(), { once: true });
  });
  try {
    const server = await api.serve(options);
    try {
      if (output.json) {
        new JsonLines(io.stdout, io).write({
          event: "ready",
          url: server.url,
          device: server.device,
        });
      } else {
        new Screen(io.stdout, io).print([
          { text: "ready  " },
          { text: `${server.url}/v1`, tone: "strong" },
          { text: `  on ${server.device}; Ctrl-C stops it`, tone: "dim" },
        ]);
      }
      await stopped;
    } finally {
      await server.close();
    }
  } finally {
    stop.release();
  }
}
