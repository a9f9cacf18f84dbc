/** The options of generate. */
import type { Command } from "commander";
import type { KvType } from "../generate/kv-cache.ts";
import type { GenerateOptions, LoadOptions } from "../generate.ts";
import {
  device,
  json,
  type OutputOptions,
  precision,
  requireAll,
  required,
  threads,
  valued,
} from "./option-kinds.ts";
import { choice, decimal, integer, path } from "./values.ts";

export const KV_TYPES: readonly KvType[] = ["f32", "f16", "bf16", "int4"];
const MAX_TEMPERATURE = 100;

export interface GenerateCommand {
  readonly model: string;
  readonly prompt: string;
  readonly load: LoadOptions;
  readonly options: GenerateOptions;
}

export function addGenerateOptions(command: Command): Command {
  const run = command
    .optionsGroup("Input:")
    .addOption(required("--model <dir>", "folder of a checkpoint, quantized or not", path))
    .addOption(required("--prompt <text>", "text to write on", String))
    .optionsGroup("Text:")
    .addOption(
      valued("--max-tokens <n>", "tokens to write at most (default: as many as fit)", integer(1)),
    )
    .addOption(
      valued(
        "--temperature <t>",
        "0 always takes the most likely token; above, tokens are drawn (default: 0)",
        decimal(0, MAX_TEMPERATURE),
      ),
    )
    .addOption(
      valued(
        "--top-p <p>",
        "draw among the fewest tokens that have this probability together (default: 1)",
        decimal(0, 1),
      ),
    )
    .addOption(valued("--seed <n>", "of what is drawn (default: 0)", integer(0)))
    .optionsGroup("Run:");
  return addDecoderOptions(run).addOption(
    json("pieces of text and the result as JSON lines on stdout"),
  );
}

/** How a model is loaded for decoding; of generate and serve. */
export function addDecoderOptions(command: Command): Command {
  return command
    .addOption(
      valued(
        "--max-length <n>",
        "tokens of a text at most, its prompt included (default: the model's maximum, at most 2048)",
        integer(2),
      ),
    )
    .addOption(
      valued(
        "--kv <type>",
        "how keys and values are kept: f32, f16, bf16 or int4 (default: int4 where the model was calibrated so, else f32)",
        choice(KV_TYPES),
      ),
    )
    .addOption(device())
    .addOption(precision())
    .addOption(threads());
}

type Given = Omit<LoadOptions, "slots"> &
  Omit<GenerateOptions, "signal"> &
  OutputOptions & { readonly model: string; readonly prompt: string };

/** What `generate` was asked for. */
export function generateOptions(command: Command): [GenerateCommand, OutputOptions] {
  requireAll(command);
  const { model, prompt, json, maxTokens, temperature, topP, seed, ...load } =
    command.opts<Given>();
  const options = { maxTokens, temperature, topP, seed };
  return [{ model, prompt, load, options }, json ? { json } : {}];
}
