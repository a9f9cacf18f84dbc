/**
 * Perplexity of quantized models by setting, as a table in Markdown with the seconds of each phase.
 *
 *   AQ_SHARED=DIR node dist-bench/bench/quality.js [FILTER...] [--epochs N] [--threads N]
 *
 * DIR holds models/<name> and data/books-valid.txt, data/books-test.txt. Calibration: the first 32
 * windows of books-valid; perplexity: all windows of books-test. FILTER picks rows that contain every
 * word, like "gqa W4A4".
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { evaluate, type QuantizeOptions, quantize } from "../lib/index.ts";

const MODELS = ["llama-gqa-4m", "opt-5m", "llama-23m"] as const;

const SETTINGS: readonly { readonly name: string; readonly options: Partial<QuantizeOptions> }[] = [
  { name: "W4A4", options: { wbits: 4, abits: 4 } },
  { name: "W3A16", options: { wbits: 3 } },
  { name: "W4A16", options: { wbits: 4 } },
  { name: "W2A16 g32", options: { wbits: 2, groupSize: 32 } },
];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { epochs: { type: "string" }, threads: { type: "string" } },
});
const shared = process.env["AQ_SHARED"];
if (!shared) {
  console.error("AQ_SHARED must name the folder that holds models/ and data/");
  process.exit(2);
}
const numbers = {
  ...(values.epochs ? { epochs: Number(values.epochs) } : {}),
  ...(values.threads ? { threads: Number(values.threads) } : {}),
};

/** Quantizes with one recipe and measures what was written. */
async function measure(model: string, options: Partial<QuantizeOptions>): Promise<string[]> {
  const out = mkdtempSync(path.join(tmpdir(), "aq-quality-"));
  const data = (name: string): string => path.join(shared as string, "data", name);
  try {
    const result = await quantize({
      model,
      out,
      calib: data("books-valid.txt"),
      ...numbers,
      ...options,
    });
    const phases: Record<string, number> = {};
    for (const { phaseSeconds } of result.blocks) {
      for (const [phase, seconds] of Object.entries(phaseSeconds)) {
        phases[phase] = (phases[phase] ?? 0) + seconds;
      }
    }
    const { ppl, stderr } = await evaluate({ model: out, text: data("books-test.txt") });
    const worst = Math.max(...result.blocks.map((block) => block.equivalence ?? 0));
    const seconds = Object.entries(phases)
      .filter(([, s]) => s >= 0.5)
      .map(([phase, s]) => `${phase} ${s.toFixed(0)}`);
    return [
      `${ppl.toFixed(2)} ± ${stderr.toFixed(2)}`,
      worst ? worst.toExponential(0) : "",
      `${result.seconds.toFixed(0)} (${seconds.join(", ")})`,
    ];
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

console.log("| model | bits | rtn | aq-native | equivalence | seconds |");
console.log("| --- | --- | --- | --- | --- | --- |");
for (const name of MODELS) {
  for (const { name: bits, options } of SETTINGS) {
    const row = `${name} ${bits}`;
    if (!positionals.every((word) => row.includes(word))) continue;
    const model = path.join(shared, "models", name);
    const [rtn] = await measure(model, { ...options, recipe: "rtn" });
    const best = await measure(model, options);
    console.log(`| ${[name, bits, rtn, ...best].join(" | ")} |`);
  }
}
