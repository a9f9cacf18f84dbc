/**
 * Runs that try to break training: every stability factor, seed and rate, on both small models.
 *
 *   node dist-bench/bench/stability.js [FILTER...] [--part I/N] [--nsamples N] [--epochs N]
 *                                      [--seeds N] [--threads N] [--device NAME]
 *
 * A line for each run: loss of the last block, perplexity before and after, steps that were skipped,
 * and the fallback of each block that needed one. FILTER picks runs that contain every word, like
 * "opt W2"; --part 2/4 takes the second quarter of them. Exits 1 if a run failed.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { type QuantizeOptions, quantize } from "../lib/index.ts";
import { packageRoot } from "../lib/util/package.ts";

const { values, positionals: words } = parseArgs({
  allowPositionals: true,
  options: {
    part: { type: "string", default: "1/1" },
    nsamples: { type: "string" },
    epochs: { type: "string" },
    seeds: { type: "string", default: "5" },
    threads: { type: "string" },
    device: { type: "string" },
  },
});

const SETTINGS = [
  { name: "W4A4", options: { wbits: 4, abits: 4 } },
  { name: "W2A16-g32", options: { wbits: 2, groupSize: 32 } },
] as const;
/** Learning rates by default, and ten times as high. */
const RATES = [1, 10] as const;
const LET_LR = 5e-3;
const LWC_LR = 1e-2;

interface Trial {
  readonly name: string;
  readonly options: Omit<QuantizeOptions, "out">;
}

function trials(): Trial[] {
  const numbers = {
    ...(values.nsamples ? { nsamples: Number(values.nsamples) } : {}),
    ...(values.epochs ? { epochs: Number(values.epochs) } : {}),
    ...(values.threads ? { threads: Number(values.threads) } : {}),
    ...(values.device ? { device: values.device as NonNullable<QuantizeOptions["device"]> } : {}),
  };
  const seeds = Array.from({ length: Number(values.seeds) }, (_, seed) => seed);
  return ["llama-gqa-4m", "opt-5m"].flatMap((model) =>
    SETTINGS.flatMap(({ name, options }) =>
      [0.01, 0.1, 1].flatMap((sf) =>
        RATES.flatMap((rate) =>
          seeds.map((seed) => ({
            name: `${model} ${name} sf ${sf} rates x${rate} seed ${seed}`,
            options: {
              model: path.join(packageRoot(), "test/fixtures", model),
              ...options,
              sf,
              seed,
              sampling: "random" as const,
              letLr: LET_LR * rate,
              lwcLr: LWC_LR * rate,
              ...numbers,
            },
          })),
        ),
      ),
    ),
  );
}

/** One run, as the end of its line. Throws what the run throws. */
async function run({ options }: Trial): Promise<string> {
  const out = mkdtempSync(path.join(tmpdir(), "aq-stability-"));
  try {
    const { blocks, pplBefore, pplAfter } = await quantize({ ...options, out });
    const fallbacks = blocks.flatMap(({ block, fallback }) =>
      fallback === null ? [] : [`block ${block}: ${fallback}`],
    );
    const skipped = blocks.reduce((sum, block) => sum + block.skippedSteps, 0);
    return `${pplBefore.toFixed(2)} -> ${pplAfter.toFixed(2)}, loss ${blocks.at(-1)?.lossLast?.toPrecision(4)}, skipped ${skipped}, ${fallbacks.join(", ") || "no fallback"}`;
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

const [part, parts] = values.part.split("/").map(Number) as [number, number];
const wanted = trials().filter(({ name }) => words.every((word) => name.includes(word)));
const mine = wanted.filter((_, i) => i % parts === part - 1);
let failures = 0;
for (const trial of mine) {
  try {
    console.log(`${trial.name}: ${await run(trial)}`);
  } catch (error) {
    failures++;
    console.log(`${trial.name}: FAILED ${error instanceof Error ? error.message : error}`);
  }
}
console.log(`${mine.length} runs, ${failures} failed`);
process.exitCode = failures > 0 ? 1 : 0;
