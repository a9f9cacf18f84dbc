/** `aq-native estimate`, and `quantize --dry-run`, which prints the same. */
import type { EstimateOptions, EstimateResult } from "../estimate.ts";
import type { ApiLoader } from "./api.ts";
import { byteSize, duration, plural, table } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { Screen } from "./screen.ts";

export const ESTIMATE_EXAMPLES: readonly [string, string][] = [
  ["what a run would take", "--model ./model --wbits 4 --abits 4"],
  ["of 4-bit floats", "--model ./model --scheme NVFP4"],
  ["with twice the calibration windows", "--model ./model --nsamples 64"],
];

export async function runEstimate(
  options: EstimateOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const result = (await load()).estimate(options);
  if (output.json) {
    new JsonLines(io.stdout, io).write({ event: "estimate", ...result });
    return;
  }
  const screen = new Screen(io.stderr, io);
  for (const note of result.notes) {
    screen.print([{ text: "note: ", tone: "strong" }, { text: note }]);
  }
  io.stdout.write(`${describeEstimate(result).join("\n")}\n`);
}

function describeEstimate(result: EstimateResult): string[] {
  const free = result.freeDiskBytes;
  return table([
    [
      "run",
      `${result.family}, ${plural(result.blocks, "block")}, ${plural(result.windows, "window")} of ` +
        `${result.seqlen} tokens, ${plural(result.steps, "step")}, ` +
        (result.device.startsWith("cuda")
          ? `device ${result.device}`
          : plural(result.threads, "thread")),
    ],
    ["weights", `${result.scheme}, ${result.bitsPerWeight.toFixed(3)} bits per weight`],
    ["time", `${duration(result.seconds)} (${parts(result.phaseSeconds, duration)})`],
    [
      "memory",
      `${byteSize(result.memoryBytes)} of ${byteSize(result.availableMemoryBytes)} available ` +
        `(${parts(result.memoryParts, byteSize)})`,
    ],
    [
      "disk",
      `${byteSize(result.diskBytes)}${free === null ? "" : ` of ${byteSize(free)} free`} ` +
        `(${parts(result.diskParts, byteSize)})`,
    ],
    ["step", `${stepTime(result.measured.step)}, measured on this machine just now`],
  ]);
}

/** The parts that matter, the largest first. */
function parts(sizes: Readonly<Record<string, number>>, show: (size: number) => string): string {
  const all = Object.entries(sizes);
  const total = all.reduce((sum, [, size]) => sum + size, 0);
  return all
    .filter(([, size]) => size > 0.005 * total)
    .sort(([, a], [, b]) => b - a)
    .map(([name, size]) => `${name} ${show(size)}`)
    .join(", ");
}

/** Seconds down to a tenth of a millisecond. */
function stepTime(seconds: number): string {
  return seconds < 1 ? `${(1000 * seconds).toFixed(1)} ms` : duration(seconds);
}
