/**
 * Perplexity of quantized models by setting, as a table in Markdown with the seconds of each phase.
 *
 *   AQ_SHARED=DIR npm run bench:quality -- [FILTER...] [--epochs N] [--threads N] [--device NAME]
 *                                          [--precision NAME] [--seed N] [--save FILE]
 *
 * DIR holds models/<name> and data/books-valid.txt, data/books-test.txt. Calibration: the first 32
 * windows of books-valid; perplexity: all windows of books-test. FILTER picks rows that contain one
 * of the words after another, like "gqa-4m W4A4"; a comma between two filters takes both. A saved
 * FILE gets one JSON object a row.
 */

import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { evaluate, type QuantizeOptions, quantize } from "../lib/index.ts";

type Options = Omit<QuantizeOptions, "model" | "out">;

const W4A4: Options = { wbits: 4, abits: 4 };
const W3: Options = { wbits: 3 };
const W4: Options = { wbits: 4 };
const W2: Options = { wbits: 2, groupSize: 32 };

/** Of 4-bit floats each phase by itself; the default is one of the last two. */
const FLOAT_RECIPES: readonly (readonly [string, Options])[] = [
  ["rtn", { recipe: "rtn" }],
  ["round", { recipe: "round" }],
  ["affine + round", { recipe: "affine", rounding: "learned" }],
];

/** A million tokens that the model writes itself, and all blocks trained at the end. */
const OWN_TEXT = { calibSource: "model", epochs: 8, polish: 6 } as const;
const OWN_TOKENS = 2 ** 20;

/** The settings with a table row of their own for it. */
function ownTextRows(model: string): (readonly [string, string, string, Options])[] {
  const nsamples = OWN_TOKENS / (model === "llama-23m" ? 2048 : 512);
  const own = { ...OWN_TEXT, nsamples };
  const rows: (readonly [string, string, string, Options])[] = [
    [model, "W4A4", "own text, polish", { ...W4A4, ...own }],
    [model, "W4A16", "own text, polish", { ...W4, ...own }],
    [model, "W3A16", "own text, polish", { ...W3, ...own }],
    [model, "W2A16 g32", "own text, polish", { ...W2, ...own }],
  ];
  if (!model.startsWith("llama")) return rows;
  const hadamard: Options = { ...W4A4, ...own, hadamard: "down" };
  return [...rows, [model, "W4A4", "own text, polish, --hadamard down", hadamard]];
}

/** What is measured: model, bits, what is said of the recipe, options. */
const ROWS: readonly (readonly [string, string, string, Options])[] = [
  ...["llama-gqa-4m", "opt-5m", "llama-23m"].flatMap((model) => {
    const published = model !== "llama-gqa-4m"; // grouped heads are refused by the published recipes
    const rows: (readonly [string, string, string, Options] | false)[] = [
      [model, "W4A4", "rtn", { ...W4A4, recipe: "rtn" }],
      published && [model, "W4A4", "paper-w4a4", { ...W4A4, recipe: "paper-w4a4" }],
      [model, "W4A4", "default", W4A4],
      model.startsWith("llama") && [
        model,
        "W4A4",
        "default, --hadamard down",
        { ...W4A4, hadamard: "down" },
      ],
      [model, "W4A16", "rtn", { ...W4, recipe: "rtn" }],
      [model, "W4A16", "default", W4],
      [model, "W3A16", "rtn", { ...W3, recipe: "rtn" }],
      published && [model, "W3A16", "paper-weight-only", { ...W3, recipe: "paper-weight-only" }],
      [model, "W3A16", "default", W3],
      [model, "W2A16 g32", "rtn", { ...W2, recipe: "rtn" }],
      published && [
        model,
        "W2A16 g32",
        "paper-weight-only",
        { ...W2, recipe: "paper-weight-only" },
      ],
      [model, "W2A16 g32", "default", W2],
      ...["NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16"].flatMap((scheme) =>
        FLOAT_RECIPES.map(([name, options]): readonly [string, string, string, Options] => [
          model,
          scheme,
          name,
          { scheme, ...options },
        ]),
      ),
      ...ownTextRows(model),
    ];
    return rows.filter((row) => row !== false);
  }),
];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    epochs: { type: "string" },
    threads: { type: "string" },
    device: { type: "string" },
    precision: { type: "string" },
    seed: { type: "string" },
    save: { type: "string" },
  },
});
const shared = process.env["AQ_SHARED"];
if (!shared) {
  console.error("AQ_SHARED must name the folder that holds models/ and data/");
  process.exit(2);
}
const common = {
  ...(values.epochs ? { epochs: Number(values.epochs) } : {}),
  ...(values.threads ? { threads: Number(values.threads) } : {}),
  ...(values.seed ? { seed: Number(values.seed) } : {}),
  ...(values.device ? { device: values.device } : {}),
  ...(values.precision ? { precision: values.precision } : {}),
} as Options;

/** Quantizes with one recipe and measures what was written. */
async function measure(model: string, options: Options) {
  const out = mkdtempSync(path.join(tmpdir(), "aq-quality-"));
  const data = (name: string): string => path.join(shared as string, "data", name);
  try {
    const source = path.join(shared as string, "models", model);
    const settings = { calib: data("books-valid.txt"), ...common, ...options };
    const result = await quantize({ model: source, out, ...settings });
    const phases: Record<string, number> = {};
    for (const { phaseSeconds } of result.blocks) {
      for (const [phase, seconds] of Object.entries(phaseSeconds)) {
        phases[phase] = (phases[phase] ?? 0) + seconds;
      }
    }
    const { ppl, stderr } = await evaluate({ model: out, text: data("books-test.txt") });
    const equivalence = Math.max(...result.blocks.map((block) => block.equivalence ?? 0));
    return { ppl, stderr, equivalence, seconds: result.seconds, phases };
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

const filters = positionals.join(" ").split(",");
const isWanted = (name: string): boolean =>
  filters.some((filter) => filter.split(" ").every((word) => name.includes(word)));
console.log("| model | bits | recipe | perplexity | equivalence | seconds |");
console.log("| --- | --- | --- | --- | --- | --- |");
for (const [model, bits, recipe, options] of ROWS) {
  if (!isWanted(`${model} ${bits} ${recipe}`)) continue;
  const { ppl, stderr, equivalence, seconds, phases } = await measure(model, options);
  const split = Object.entries(phases)
    .filter(([, s]) => s >= 0.5)
    .map(([phase, s]) => `${phase} ${s.toFixed(0)}`);
  const cells = [
    model,
    bits,
    recipe,
    `${ppl.toFixed(2)} ± ${stderr.toFixed(2)}`,
    equivalence ? equivalence.toExponential(0) : "",
    `${seconds.toFixed(0)}${split.length > 0 ? ` (${split.join(", ")})` : ""}`,
  ];
  console.log(`| ${cells.join(" | ")} |`);
  if (values.save) {
    const record = { model, bits, recipe, ppl, stderr, equivalence, seconds, phases, ...common };
    appendFileSync(values.save, `${JSON.stringify(record)}\n`);
  }
}
