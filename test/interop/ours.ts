/** What aq-native itself makes of a run, to compare with. */
import { forwardLogits } from "../../lib/eval/perplexity.ts";
import { type LanguageModel, openLanguageModel } from "../../lib/generate/open.ts";
import { load } from "../../lib/index.ts";

/** Opens a folder on the CPU for as long as `use` takes. */
export async function withOurs<T>(
  dir: string,
  use: (source: LanguageModel) => T | Promise<T>,
): Promise<T> {
  const source = openLanguageModel(dir, "cpu");
  try {
    return await use(source);
  } finally {
    source.close();
  }
}

/** Logits after each id: [T][V]. */
export function logits(source: LanguageModel, ids: readonly number[]): Float32Array[] {
  const all = forwardLogits(source, Int32Array.from(ids));
  const width = source.model.shape.vocabulary;
  return ids.map((_, t) => all.subarray(t * width, (t + 1) * width));
}

/**
 * How far probabilities are from our logits: the root-mean-square difference of the logarithms, each
 * row around its mean, in parts of that of the logits.
 */
export function distance(ours: readonly Float32Array[], theirs: readonly Float32Array[]): number {
  let [difference, size] = [0, 0];
  for (const [t, row] of ours.entries()) {
    const expected = centered(row);
    const actual = centered(Float64Array.from(theirs[t] as Float32Array, Math.log));
    for (const [id, x] of expected.entries()) {
      difference += (x - (actual[id] as number)) ** 2;
      size += x ** 2;
    }
  }
  return Math.sqrt(difference / size);
}

function centered(row: Float32Array | Float64Array): Float64Array {
  let sum = 0;
  for (const x of row) sum += x;
  return Float64Array.from(row, (x) => x - sum / row.length);
}

export interface Written {
  readonly prompt: readonly number[];
  readonly ids: readonly number[];
  readonly text: string;
}

/** What `generate` writes on each prompt, by the most likely token. */
export async function written(
  dir: string,
  prompts: readonly string[],
  maxTokens: number,
): Promise<Written[]> {
  const model = await load(dir, { device: "cpu" });
  try {
    const all: Written[] = [];
    for (const prompt of prompts) {
      const ids: number[] = [];
      let text = "";
      for await (const piece of model.generate(prompt, { maxTokens, temperature: 0 })) {
        if (piece.id !== undefined) ids.push(piece.id);
        text += piece.text;
      }
      all.push({ prompt: [...model.encode(prompt)], ids, text });
    }
    return all;
  } finally {
    await model.dispose();
  }
}

/** A figure for whoever reads the log. */
export function say(line: string): void {
  process.stdout.write(`  ${line}\n`);
}
