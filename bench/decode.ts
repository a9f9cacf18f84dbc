/**
 * Decoding: tokens per second of one sequence and of several together, and the milliseconds of a token
 * behind a long context.
 *
 *   npm run bench:decode -- --model DIR [--model DIR ...] [--device cpu] [--threads N] [--tokens 100]
 *                           [--together 8] [--rounds 9] [--context N]
 *
 * Rounds of one and of several take turns, since a shared machine changes from second to second, and
 * the medians of the rounds and of their ratios are printed. --context: the caches are filled with that
 * many tokens, in pieces of 64, before a token is timed; default: the longest that the model takes.
 */
import path from "node:path";
import { parseArgs } from "node:util";
import { Decoder, type StepToken } from "../lib/generate/decoder.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { type LoadedModel, load } from "../lib/index.ts";
import { openDevice } from "../lib/tensor/compute-device.ts";
import { setThreads, synchronize } from "../lib/tensor/device.ts";
import type { DeviceName } from "../lib/types.ts";
import { printRow } from "./harness.ts";

const { values } = parseArgs({
  options: {
    model: { type: "string", multiple: true, default: [] },
    device: { type: "string", default: "cpu" },
    threads: { type: "string" },
    tokens: { type: "string", default: "100" },
    together: { type: "string", default: "8" },
    rounds: { type: "string", default: "9" },
    context: { type: "string" },
  },
});
const device = values.device as DeviceName;
const [tokens, together, rounds] = [values.tokens, values.together, values.rounds].map(Number) as [
  number,
  number,
  number,
];
/** Prompt tokens of a step, as the scheduler takes them. */
const PIECE = 64;
/** Tokens that are timed behind a context. */
const TIMED = 32;
const WIDTHS = [-28, 9, 9, 8, 10, 12, 12];

function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1] ?? Number.NaN;
}

/** Tokens per second of `count` sequences that are written together. */
async function rate(model: LoadedModel, count: number): Promise<number> {
  const start = performance.now();
  let written = 0;
  const write = async (i: number): Promise<void> => {
    // Prompts that differ in their first id, so that no two sequences are the same.
    const prompt = Int32Array.of((17 * i + 40) % model.vocabulary, 50, 60);
    for await (const { id } of model.generate(prompt, { maxTokens: tokens })) {
      if (id !== undefined) written++;
    }
  };
  await Promise.all(Array.from({ length: count }, (_, i) => write(i)));
  return (1e3 * written) / (performance.now() - start);
}

/** Milliseconds of the prompt's tokens together, and of one token behind them. */
async function behindContext(
  dir: string,
): Promise<{ readonly context: number; readonly prompt: number; readonly token: number }> {
  const opened = openDevice({ device });
  const source = openLanguageModel(dir, opened.name);
  const most = source.model.shape.maxTokens;
  const context = Math.min(Number(values.context ?? most), most) - TIMED;
  const decoder = new Decoder(source, { slots: 1, capacity: context + TIMED });
  const { vocabulary } = source.model.shape;
  const tokenAt = (position: number): StepToken => ({
    slot: 0,
    position,
    id: (7 * position) % vocabulary,
  });
  try {
    const start = performance.now();
    for (let at = 0; at < context; at += PIECE) {
      const count = Math.min(PIECE, context - at);
      decoder.step(
        Array.from({ length: count }, (_, i) => tokenAt(at + i)),
        [],
      );
    }
    await synchronize(opened.name);
    const prompt = performance.now() - start;
    const times: number[] = [];
    for (let i = 0; i < TIMED; i++) {
      const before = performance.now();
      const logits = decoder.step([tokenAt(context + i)], [0]);
      await logits?.readAsync();
      logits?.dispose();
      times.push(performance.now() - before);
    }
    return { context, prompt, token: median(times) };
  } finally {
    decoder.dispose();
    source.close();
    opened.release();
  }
}

if (values.model.length === 0) throw new Error("name a model folder with --model");
if (values.threads !== undefined) setThreads(Number(values.threads));
printRow(["model", "one", `${together}`, "ratio", "context", "prompt t/s", "ms a token"], WIDTHS);
for (const dir of values.model) {
  const [alone, many] = [
    await load(dir, { device, slots: 1 }),
    await load(dir, { device, slots: together }),
  ];
  const rates: [number, number][] = [];
  for (let round = 0; round <= rounds; round++) {
    const pair: [number, number] = [await rate(alone, 1), await rate(many, together)];
    if (round > 0) rates.push(pair);
  }
  await alone.dispose();
  await many.dispose();
  const { context, prompt, token } = await behindContext(dir);
  printRow(
    [
      path.basename(path.resolve(dir)),
      median(rates.map(([one]) => one)).toFixed(0),
      median(rates.map(([, several]) => several)).toFixed(0),
      median(rates.map(([one, several]) => several / one)).toFixed(2),
      `${context}`,
      ((1e3 * context) / prompt).toFixed(0),
      token.toFixed(2),
    ],
    WIDTHS,
  );
}
