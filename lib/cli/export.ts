/** `aq-native export`. */
import * as path from "node:path";
import type { ExportOptions, ExportResult, WeightChange } from "../export-types.ts";
import { shellWord } from "../util/shell.ts";
import type { ApiLoader } from "./api.ts";
import { byteSize, plural, significant } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./option-kinds.ts";
import { Screen, type Segment } from "./screen.ts";
import { stopOnSignals } from "./stop.ts";

export const EXPORT_EXAMPLES: readonly [string, string][] = [
  [
    "for vLLM, in whichever format it loads",
    "--run ./model-w4 --target vllm --out ./model-w4-vllm",
  ],
  ["for llama.cpp", "--run ./model-w4 --format gguf --out ./model-w4-gguf"],
];

export async function runExport(
  options: ExportOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const api = await load();
  const lines = output.json ? new JsonLines(io.stdout, io) : null;
  const screen = new Screen(io.stderr, io);
  const stop = stopOnSignals(io.stderr);
  let result: ExportResult;
  try {
    result = await api.exportRun(options, {
      onEvent: (event) => {
        if (lines) lines.writeSometimes(event);
        else screen.status([{ text: event.format, tone: "strong" }, { text: `  ${event.tensor}` }]);
      },
      signal: stop.signal,
    });
  } finally {
    screen.clear();
    stop.release();
  }
  if (lines) {
    lines.write({ event: "done", ...result });
    return;
  }
  const out = new Screen(io.stdout, io);
  for (const line of exportLines(result)) out.print(line);
}

/** What was written and what it changed, one line each. */
export function exportLines(result: ExportResult): Segment[][] {
  const { format, out, files, bytes, change, otherChange, notes, verified } = result;
  const lines: Segment[][] = [
    [
      { text: "written to  " },
      { text: out, tone: "strong" },
      { text: `  (${format}, ${plural(files.length, "file")}, ${byteSize(bytes)})`, tone: "dim" },
    ],
    [{ text: `weights     ${changeWords(change)}` }],
  ];
  if (otherChange) lines.push([{ text: `others      ${changeWords(otherChange)}` }]);
  const { linears, others } = verified;
  const counts = `${plural(linears, "linear")}, ${plural(others, "other tensor")}`;
  lines.push([{ text: `read back   the same as the run: ${counts}` }]);
  for (const text of notes) lines.push([{ text: "note        ", tone: "warn" }, { text }]);
  lines.push([{ text: `next        ${nextCommand(result)}` }]);
  return lines;
}

function changeWords({ max, rms }: WeightChange): string {
  if (max === 0) return "as calibrated, bit for bit";
  return `rounded to float16 in part: at most ${significant(max, 2)} of the largest, ${significant(rms, 2)} in the mean`;
}

function nextCommand({ format, out, files }: ExportResult): string {
  const folder = shellWord(out);
  switch (format) {
    case "gguf":
    case "gguf-f16": {
      const name = files.find((file) => file.endsWith(".gguf")) ?? "model.gguf";
      return `llama-cli -m ${shellWord(path.join(out, name))}`;
    }
    case "awq":
    case "compressed-tensors":
    case "gptq":
    case "modelopt":
      return `vllm serve ${folder}`;
    default:
      return `aq-native eval --model ${folder} --text FILE`;
  }
}
