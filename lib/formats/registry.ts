/** The formats that are known. */

import { AqError } from "../errors.ts";
import type { FormatName } from "../export-types.ts";
import { aq } from "./aq.ts";
import { awq } from "./awq.ts";
import { compressedTensors } from "./compressed-tensors.ts";
import type { Format } from "./format.ts";
import { gguf, ggufF16 } from "./gguf.ts";
import { gptq, gptqV2 } from "./gptq.ts";
import { hf } from "./hf.ts";
import { modelopt } from "./modelopt.ts";

const FORMATS: Readonly<Record<FormatName, Format>> = {
  hf,
  gptq,
  gptq_v2: gptqV2,
  awq,
  "compressed-tensors": compressedTensors,
  modelopt,
  gguf,
  "gguf-f16": ggufF16,
  aq,
};

export const FORMAT_NAMES: readonly FormatName[] = Object.keys(FORMATS) as FormatName[];

/** Throws: AQ_ARG with the names there are. */
export function formatOf(name: string): Format {
  const format = Object.hasOwn(FORMATS, name) ? FORMATS[name as FormatName] : undefined;
  if (format) return format;
  throw new AqError("AQ_ARG", `there is no format '${name}'; formats: ${FORMAT_NAMES.join(", ")}`);
}

/** The folder of a format beside `aq`, which holds the run itself. */
export function folderOf(name: FormatName): string {
  return name === "aq" ? "aq-packed" : name;
}
