/** `aq-native quantize`. */
import * as path from "node:path";
import { type RankedLayer, rankLayers } from "../report/layers.ts";
import type { QuantizeOptions, QuantizeResult } from "../types.ts";
import { REPORT_FILES, RUN_FOLDER } from "../util/layout.ts";
import { shellWord } from "../util/shell.ts";
import type { ApiLoader } from "./api.ts";
import { runEstimate } from "./estimate.ts";
import { exportLines } from "./export.ts";
import { duration, percent, perplexity, plural } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { quantizeProgress } from "./progress.ts";
import { Screen, type Segment } from "./screen.ts";
import { stopOnSignals } from "./stop.ts";

export const QUANTIZE_EXAMPLES: readonly [string, string][] = [
  ["4-bit weights, one scale per output channel", "--model ./model --out ./model-w4"],
  ["4-bit weights and activations", "--model ./model --wbits 4 --abits 4 --out ./model-w4a4"],
  [
    "3-bit weights in groups of 128",
    "--model ./model --wbits 3 --group-size 128 --out ./model-w3g128",
  ],
  [
    "and the same codes for llama.cpp and for vLLM",
    "--model ./model --group-size 128 --format gguf,awq --out ./model-w4g128",
  ],
  [
    "4-bit floats, as vLLM serves them",
    "--model ./model --scheme NVFP4 --target vllm --out ./model-nvfp4",
  ],
  [
    "and what suffers most left as it is",
    "--model ./model --scheme NVFP4 --keep '*.down_proj' 'layers.0.*' --out ./model-nvfp4",
  ],
  ["calibrate on your own text", "--model ./model --calib my.txt --nsamples 64 --out ./model-w4"],
  [
    "the best that we know: much text that the model writes itself, and all blocks trained at the end",
    "--model ./model --wbits 3 --calib-source model --nsamples 192 --polish 6 --out ./model-w3",
  ],
  ["the baseline: round to nearest", "--model ./model --recipe rtn --out ./model-rtn"],
];

export async function runQuantize(
  options: QuantizeOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  if (output.dryRun) {
    await runEstimate(options, output, io, load);
    return;
  }
  const api = await load();
  const progress = quantizeProgress(io, output.json === true);
  const stop = stopOnSignals(io.stderr);
  let result: QuantizeResult;
  try {
    result = await api.quantize(options, {
      onEvent: (event) => progress.event(event),
      signal: stop.signal,
    });
  } finally {
    progress.end();
    stop.release();
  }
  if (output.json) {
    const { out, seconds, pplBefore, pplAfter, blocks, polish, formats } = result;
    new JsonLines(io.stdout, io).write({
      event: "done",
      out,
      seconds,
      pplBefore,
      pplAfter,
      blocks,
      ...(polish && { polish }),
      ...(formats && { formats }),
    });
  } else {
    printSummary(result, io);
  }
}

/** The layer that loses most, for whoever wonders what to leave as it is. */
function worstLine({ name, weight, activation }: RankedLayer): Segment[] {
  const byInput = activation === null ? "" : `, activations ${percent(activation)}`;
  return [
    { text: "worst layer " },
    { text: name, tone: "strong" },
    { text: `  (weights ${percent(weight)}${byInput}; --keep leaves it as it is)`, tone: "dim" },
  ];
}

function printSummary(result: QuantizeResult, io: Io): void {
  const { out, seconds, pplBefore, pplAfter, blocks } = result;
  const fallen = blocks.filter((block) => block.fallback === "rtn").length;
  if (fallen > 0) {
    new Screen(io.stderr, io).print([
      {
        text: `${plural(fallen, "block")} could not be trained and ${fallen === 1 ? "was" : "were"} rounded to nearest.`,
        tone: "warn",
      },
    ]);
  }
  const screen = new Screen(io.stdout, io);
  const rise = pplAfter / pplBefore - 1;
  screen.print([
    { text: "perplexity  " },
    { text: `${perplexity(pplBefore)} -> ${perplexity(pplAfter)}`, tone: "strong" },
    { text: `  (${rise < 0 ? "" : "+"}${percent(rise)})`, tone: "dim" },
  ]);
  screen.print([
    { text: "written to  " },
    { text: out, tone: "strong" },
    { text: `  (${plural(blocks.length, "block")} in ${duration(seconds)})`, tone: "dim" },
  ]);
  screen.print([{ text: `report      ${path.join(out, RUN_FOLDER, REPORT_FILES.html)}` }]);
  const [worst] = rankLayers(blocks);
  if (worst) screen.print(worstLine(worst));
  for (const format of result.formats ?? []) {
    for (const line of exportLines(format)) screen.print(line);
  }
  screen.print([{ text: `next        aq-native eval --model ${shellWord(out)} --text FILE` }]);
}
