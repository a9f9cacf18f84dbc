/** `aq-native verify`. */
import type { VerifiedFolder, VerifyOptions, VerifyResult } from "../verify.ts";
import type { ApiLoader } from "./api.ts";
import { grouped, plural } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { stopOnSignals } from "./stop.ts";

export const VERIFY_EXAMPLES: readonly [string, string][] = [
  ["a run's output and every format beside it", "./model-w4"],
  ["one folder, with the run that it was exported from", "./model-w4-awq --run ./model-w4"],
];

export async function runVerify(
  options: VerifyOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const api = await load();
  const stop = stopOnSignals(io.stderr);
  let result: VerifyResult;
  try {
    result = await api.verify(options, { signal: stop.signal });
  } finally {
    stop.release();
  }
  if (output.json) new JsonLines(io.stdout, io).write({ event: "done", ...result });
  else io.stdout.write(`${describeVerified(result).join("\n")}\n`);
}

/** A line for each format, and what is to be known of it behind. */
export function describeVerified({ folders }: VerifyResult): string[] {
  return folders.flatMap((folder) => [
    `${folder.format}: the same as the run, ${counts(folder)} (${folder.path})`,
    ...folder.notes.map((note) => `  ${note}`),
  ]);
}

function counts({ linears, codes, scales, zeros, others, values }: VerifiedFolder): string {
  const grids = scales > 0 ? `, ${grouped(scales)} scales, ${grouped(zeros)} zeros` : "";
  return `${plural(linears, "linear")} of ${grouped(codes)} codes${grids}; ${plural(others, "other tensor")} of ${grouped(values)} numbers`;
}
