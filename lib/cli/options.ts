/**
 * The options of every command, declared once. What commander collects under the camel-case names is
 * exactly an options object of lib/types.ts: an option that is not given is absent, and the defaults
 * named in the help are those of the API.
 */
import type { Command, Option } from "commander";
import type { EstimateOptions } from "../estimate.ts";
import { SCHEME_NAMES } from "../quant/presets.ts";
import type {
  EvaluateOptions,
  InspectOptions,
  QuantizeOptions,
  RecipeName,
  ResumeMode,
} from "../types.ts";
import { FORMATS, TARGETS } from "./export-options.ts";
import {
  device,
  flag,
  json,
  type OutputOptions,
  precision,
  repeated,
  requireAll,
  required,
  threads,
  valued,
} from "./option-kinds.ts";
import {
  byteCount,
  caselessChoice,
  choice,
  choices,
  decimal,
  integer,
  path,
  pattern,
} from "./values.ts";

export type { OutputOptions } from "./option-kinds.ts";

const RECIPES = [
  "default",
  "affine",
  "round",
  "lwc-only",
  "rtn",
  "paper-w4a4",
  "paper-weight-only",
] as const satisfies readonly RecipeName[];
const RESUMES = ["auto", "required", "never"] as const satisfies readonly ResumeMode[];
const CALIB_SOURCES = ["text", "model"] as const;
const SAMPLINGS = ["sequential", "random"] as const;
const ROTATES = ["auto", "on", "off"] as const;
const HADAMARDS = ["none", "down"] as const;
const ROUNDINGS = ["learned", "nearest", "gptq"] as const;
const MAX_SEED = 2 ** 32 - 1;

const bits = integer(2, 8);
const bitsOrNone = integer(2, 8, [16], "16 leaves activations alone.");
const windowLength = integer(2);

export function addQuantizeOptions(command: Command): Command {
  const out = required("--out <dir>", "folder to write", path);
  const dryRun = flag("--dry-run", "say what time, memory and disk it takes, and stop");
  return addRunOptions(command, [out, dryRun]);
}

/** The same as for quantize, so that a command line can be tried with the other word. */
export function addEstimateOptions(command: Command): Command {
  return addRunOptions(command, [valued("--out <dir>", "folder that would be written", path)]);
}

function addRunOptions(command: Command, own: readonly Option[]): Command {
  command
    .optionsGroup("Input and output:")
    .addOption(required("--model <dir>", "folder of a Hugging Face checkpoint", path));
  for (const option of own) command.addOption(option);
  return command
    .addOption(flag("--overwrite", "replace what is in --out"))
    .addOption(
      valued(
        "--resume <how>",
        "a run in --out: auto goes on with it, required refuses to start one, never refuses to go on (default: auto)",
        choice(RESUMES),
      ),
    )
    .addOption(
      valued(
        "--format <names>",
        `write these too, each into a folder of its name in --out: ${FORMATS.join(", ")}`,
        choices(FORMATS),
      ),
    )
    .addOption(
      valued(
        "--target <name>",
        `write the format that this program loads: ${TARGETS.join(", ")}`,
        choice(TARGETS),
      ),
    )
    .optionsGroup("Quantization:")
    .addOption(
      valued(
        "--scheme <name>",
        `weights and activations by the name that servers have for them: ${SCHEME_NAMES.join(", ")}`,
        caselessChoice(SCHEME_NAMES),
      ),
    )
    .addOption(valued("--wbits <n>", "bits of a weight, 2..8 (default: 4)", bits))
    .addOption(
      valued(
        "--abits <n>",
        "bits of an activation, 2..8, or 16 for none (default: 16)",
        bitsOrNone,
      ),
    )
    .addOption(
      valued(
        "--group-size <n>",
        "weights that share a scale, along the input (default: a whole output channel, or the scheme's)",
        integer(1, undefined, undefined, "Leave the option out for one scale per output channel."),
      ),
    )
    .addOption(flag("--symmetric", "weight grids symmetric about zero"))
    .addOption(
      repeated(
        "--keep <names...>",
        "linears to leave as they are, by their names or the ends of them; * stands for any characters",
        pattern,
      ),
    )
    .optionsGroup("Method:")
    .addOption(
      valued("--recipe <name>", `${RECIPES.join(", ")} (default: default)`, choice(RECIPES)),
    )
    .addOption(
      valued(
        "--rotate <when>",
        "rotate the residual stream first: auto (where activations are quantized to integers), on, off (default: auto)",
        choice(ROTATES),
      ),
    )
    .addOption(
      valued(
        "--hadamard <where>",
        "down: transform the input of the down projection at run time; stock loaders then refuse the output (default: none)",
        choice(HADAMARDS),
      ),
    )
    .addOption(
      valued(
        "--rounding <how>",
        "how the codes are found: learned, nearest, gptq (default: the recipe's)",
        choice(ROUNDINGS),
      ),
    )
    .addOption(
      valued(
        "--epochs <n>",
        "passes over the windows for each block (default: 20)",
        integer(1, undefined, undefined, "Use --recipe rtn to train nothing."),
      ),
    )
    .addOption(
      valued(
        "--batch <n>",
        "windows of an optimizer step, whose loss is their mean: faster on a GPU, fewer and more exact steps (default: 1)",
        integer(1),
      ),
    )
    .addOption(
      valued(
        "--polish <n>",
        "epochs that train all blocks against the full-precision logits at the end; takes the memory of training the whole model (default: 0)",
        integer(0),
      ),
    )
    .addOption(
      valued(
        "--alpha <x>",
        "exponent of the activations in the starts (default: 0.5)",
        decimal(0, 1),
      ),
    )
    .addOption(
      valued(
        "--sf <x>",
        "stability factor of the gradual mask (default: 0.1; paper-weight-only: 0.01, for OPT 1)",
        decimal(0, 1),
      ),
    )
    .addOption(
      flag(
        "--norm-full",
        "a full matrix behind each norm, its inverse applied at run time: a larger model that only aq-native runs",
      ),
    )
    .addOption(
      valued("--let-lr <x>", "learning rate of the transforms (default: 5e-3)", decimal(0, 1)),
    )
    .addOption(
      valued("--lwc-lr <x>", "learning rate of the clipping (default: 1e-2)", decimal(0, 1)),
    )
    .addOption(valued("--wd <x>", "weight decay (default: 0)", decimal(0, 1)))
    .addOption(
      flag(
        "--aug-loss",
        "add the loss on the quantized input (default: if abits < 16 or wbits = 2)",
      ),
    )
    .addOption(flag("--no-aug-loss", "leave that loss out"))
    .optionsGroup("Calibration text:")
    .addOption(
      valued("--calib <file>", "plain text (default: the one shipped with the package)", path),
    )
    .addOption(
      valued(
        "--calib-source <what>",
        "text: windows of the text; model: windows that the model writes itself, each behind a few tokens of the text (default: text)",
        choice(CALIB_SOURCES),
      ),
    )
    .addOption(valued("--nsamples <n>", "calibration windows (default: 32)", integer(1)))
    .addOption(
      valued(
        "--seqlen <n>",
        "tokens of a window (default: 2048, or the model's maximum)",
        windowLength,
      ),
    )
    .addOption(
      valued(
        "--sampling <how>",
        "sequential: the first windows; random: seeded (default: sequential)",
        choice(SAMPLINGS),
      ),
    )
    .optionsGroup("Run:")
    .addOption(
      valued("--seed <n>", "of everything that is random (default: 0)", integer(0, MAX_SEED)),
    )
    .addOption(
      valued(
        "--stream-memory <size>",
        "memory for activations, like 512MB; more goes to a file (default: no limit)",
        byteCount,
      ),
    )
    .addOption(threads())
    .addOption(device())
    .addOption(precision())
    .addOption(json("progress and result as JSON lines on stdout"));
}

export function addEvaluateOptions(command: Command): Command {
  return command
    .optionsGroup("Input:")
    .addOption(required("--model <dir>", "folder of a checkpoint, quantized or not", path))
    .addOption(required("--text <file>", "plain-text file", path))
    .optionsGroup("Protocol:")
    .addOption(
      valued(
        "--seqlen <n>",
        "tokens of a window (default: 2048, or the model's maximum)",
        windowLength,
      ),
    )
    .addOption(valued("--windows <n>", "at most this many, from the first", integer(1)))
    .addOption(
      valued(
        "--abits <n>",
        "instead of the folder's own: 2..8, or 16 to leave activations alone",
        bitsOrNone,
      ),
    )
    .optionsGroup("Run:")
    .addOption(threads())
    .addOption(device())
    .addOption(precision())
    .addOption(json("result as one JSON object on the last line of stdout"));
}

export function addInspectOptions(command: Command): Command {
  return command
    .optionsGroup("Options:")
    .addOption(required("--model <dir>", "folder of a checkpoint", path))
    .addOption(json("the same as one JSON object"));
}

export function addDoctorOptions(command: Command): Command {
  return command.optionsGroup("Options:").addOption(json("the same as one JSON object"));
}

/** What `quantize` was asked for: the API's options, and how to show them. */
export function quantizeOptions(command: Command): [QuantizeOptions, OutputOptions] {
  requireAll(command);
  const { json, dryRun, ...options } = command.opts<QuantizeOptions & OutputOptions>();
  return [options, { ...(json && { json }), ...(dryRun && { dryRun }) }];
}

export function estimateOptions(command: Command): [EstimateOptions, OutputOptions] {
  requireAll(command);
  const { json, ...options } = command.opts<EstimateOptions & OutputOptions>();
  return [options, json ? { json } : {}];
}

/** What `eval` was asked for. */
export function evaluateOptions(command: Command): [EvaluateOptions, OutputOptions] {
  requireAll(command);
  const { json, ...options } = command.opts<EvaluateOptions & OutputOptions>();
  return [options, json ? { json } : {}];
}

export function inspectOptions(command: Command): [InspectOptions, OutputOptions] {
  requireAll(command);
  const { json, ...options } = command.opts<InspectOptions & OutputOptions>();
  return [options, json ? { json } : {}];
}

export function doctorOptions(command: Command): OutputOptions {
  return command.opts<OutputOptions>();
}
