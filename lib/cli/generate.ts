/** `aq-native generate`: text as it comes. */
import type { ApiLoader } from "./api.ts";
import { plural } from "./format.ts";
import type { GenerateCommand } from "./generate-options.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { Screen } from "./screen.ts";
import { stopOnSignals } from "./stop.ts";

export const GENERATE_EXAMPLES: readonly [string, string][] = [
  ["write on from a prompt", '--model ./model-w4a4 --prompt "Once upon a time"'],
  [
    "draw instead of taking the most likely",
    '--model ./model-w4a4 --prompt "Once" --temperature 0.8 --top-p 0.95 --seed 1',
  ],
];

/** Control characters but line ends and tabs: text from a model must not steer a terminal. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

export async function runGenerate(
  { model: dir, prompt, load: loadOptions, options }: GenerateCommand,
  output: OutputOptions,
  io: Io,
  loadApi: ApiLoader,
): Promise<void> {
  const api = await loadApi();
  const json = output.json ? new JsonLines(io.stdout, io) : undefined;
  const stop = stopOnSignals(io.stderr);
  const model = await api.load(dir, loadOptions);
  try {
    const promptTokens = model.encode(prompt).length;
    const run = model.generate(prompt, { ...options, signal: stop.signal });
    const began = io.now();
    let first = began;
    let [text, tokens] = ["", 0];
    for (;;) {
      const { value, done } = await run.next();
      if (done) {
        const seconds = (io.now() - began) / 1e3;
        // The first token also read the prompt.
        const rate = tokens > 1 ? ((tokens - 1) / (io.now() - first)) * 1e3 : null;
        if (json) {
          const event = { event: "done", finish: value, text, promptTokens, tokens, seconds };
          json.write({ ...event, tokensPerSecond: rate });
          return;
        }
        io.stdout.write("\n");
        const speed = rate === null ? "" : `, ${rate.toFixed(1)} a second`;
        const why = value === "stop" ? "the model ended the text" : "as many as asked for or fit";
        new Screen(io.stderr, io).print([
          { text: `${plural(tokens, "token")}${speed}: ${why}`, tone: "dim" },
        ]);
        return;
      }
      if (value.id !== undefined && tokens++ === 0) first = io.now();
      text += value.text;
      if (json) json.write({ event: "text", text: value.text, ...idOf(value.id) });
      else io.stdout.write(io.stdout.isTTY ? value.text.replace(CONTROL, "\uFFFD") : value.text);
    }
  } finally {
    stop.release();
    await model.dispose();
  }
}

const idOf = (id: number | undefined): { readonly id?: number } => (id === undefined ? {} : { id });
