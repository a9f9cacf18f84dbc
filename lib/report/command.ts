/** The command line that repeats a run. */

import * as path from "node:path";
import type { QuantizeOptions } from "../types.ts";
import { shellWord } from "../util/shell.ts";

/** Of this run's history, or of whoever watches it: a repetition need not have them. */
const LEFT_OUT: ReadonlySet<string> = new Set(["overwrite", "resume", "json"]);
const PATHS: ReadonlySet<string> = new Set(["model", "out", "calib"]);

/** `aq-native quantize` with every option that was given: what and where to first, paths absolute. */
export function repeatCommand(options: QuantizeOptions): string {
  const words = ["aq-native", "quantize"];
  const { model, out, ...others } = options;
  for (const [name, value] of Object.entries({ model, out, ...others }) as [string, unknown][]) {
    if (value === undefined || value === null || LEFT_OUT.has(name)) continue;
    const option = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (value === true) words.push(`--${option}`);
    else if (name === "keep") words.push("--keep", ...(value as string[]).map(shellWord));
    else if (value === false) words.push(...(name === "augLoss" ? ["--no-aug-loss"] : []));
    else {
      const text = PATHS.has(name) ? path.resolve(String(value)) : String(value);
      words.push(`--${option}`, shellWord(text));
    }
  }
  return words.join(" ");
}
