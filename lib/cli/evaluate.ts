/** `aq-native eval`. */
import type { EvaluateOptions, EvaluateResult } from "../types.ts";
import type { ApiLoader } from "./api.ts";
import { perplexity, plural } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { evaluateProgress } from "./progress.ts";
import { Screen } from "./screen.ts";
import { stopOnSignals } from "./stop.ts";

export const EVALUATE_EXAMPLES: readonly [string, string][] = [
  ["perplexity on a text", "--model ./model-w4a4 --text test.txt"],
  ["a quick look at the first windows", "--model ./model-w4a4 --text test.txt --windows 16"],
  ["weights alone quantized", "--model ./model-w4a4 --text test.txt --abits 16"],
];

export async function runEvaluate(
  options: EvaluateOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const api = await load();
  const progress = evaluateProgress(io, output.json === true);
  const stop = stopOnSignals(io.stderr);
  let result: EvaluateResult;
  try {
    result = await api.evaluate(options, {
      onEvent: (event) => progress.event(event),
      signal: stop.signal,
    });
  } finally {
    progress.end();
    stop.release();
  }
  const { ppl, stderr, windows, tokens } = result;
  if (output.json) {
    new JsonLines(io.stdout, io).write({ event: "done", ppl, stderr, windows, tokens });
    return;
  }
  new Screen(io.stdout, io).print([
    { text: "perplexity  " },
    { text: perplexity(ppl), tone: "strong" },
    { text: ` +- ${perplexity(stderr)}` },
    { text: `  (${plural(windows, "window")}, ${plural(tokens, "token")})`, tone: "dim" },
  ]);
}
