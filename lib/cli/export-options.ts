/** The options of export and verify. */
import { Argument, type Command } from "commander";
import type { ExportOptions, FormatName, TargetName } from "../export-types.ts";
import type { VerifyOptions } from "../verify.ts";
import { flag, json, type OutputOptions, requireAll, required, valued } from "./option-kinds.ts";
import { choice, path } from "./values.ts";

// Named once more, so that help and misuse are answered without loading what writes them.
export const FORMATS: readonly FormatName[] = [
  "hf",
  "gptq",
  "gptq_v2",
  "awq",
  "compressed-tensors",
  "modelopt",
  "gguf",
  "gguf-f16",
  "aq",
];
export const TARGETS: readonly TargetName[] = [
  "vllm",
  "sglang",
  "tensorrt-llm",
  "transformers",
  "llama.cpp",
];

export function addExportOptions(command: Command): Command {
  return command
    .optionsGroup("Input and output:")
    .addOption(required("--run <dir>", "folder that was --out of a finished run", path))
    .addOption(required("--out <dir>", "folder to write", path))
    .addOption(flag("--overwrite", "replace what an earlier export left in --out"))
    .optionsGroup("Format, one of the two:")
    .addOption(valued("--format <name>", FORMATS.join(", "), choice(FORMATS)))
    .addOption(
      valued(
        "--target <name>",
        `the format that this program loads: ${TARGETS.join(", ")}`,
        choice(TARGETS),
      ),
    )
    .optionsGroup("Run:")
    .addOption(json("progress and result as JSON lines on stdout"));
}

/** What `export` was asked for. */
export function exportOptions(command: Command): [ExportOptions, OutputOptions] {
  requireAll(command);
  const { json, ...options } = command.opts<ExportOptions & OutputOptions>();
  if (options.format === undefined && options.target === undefined) {
    command.error("error: neither '--format <name>' nor '--target <name>' specified");
  }
  if (options.format !== undefined && options.target !== undefined) {
    command.error("error: '--format <name>' and '--target <name>' exclude each other");
  }
  return [options, json ? { json } : {}];
}

export function addVerifyOptions(command: Command): Command {
  return command
    .addArgument(
      new Argument("<dir>", "folder of a run or of an export, or a .gguf file").argParser(path),
    )
    .optionsGroup("Options:")
    .addOption(valued("--run <dir>", "folder of the run (default: found from <dir>)", path))
    .addOption(json("the result as one JSON object"));
}

/** What `verify` was asked for. */
export function verifyOptions(command: Command, dir: string): [VerifyOptions, OutputOptions] {
  const { json, ...options } = command.opts<Omit<VerifyOptions, "dir"> & OutputOptions>();
  return [{ dir, ...options }, json ? { json } : {}];
}
