/**
 * The command line: which commands there are, and what each outcome means to the shell. Errors of use
 * are answered in one line with the nearest name; what a command does lives in the file of its name.
 */
import { Argument, Command, CommanderError } from "commander";
import { nearest } from "../util/nearest.ts";
import { packageVersion } from "../util/package.ts";
import { type ApiLoader, loadApi } from "./api.ts";
import { COMPLETION_EXAMPLES, runCompletion, SHELLS, type Shell } from "./completion.ts";
import { DOCTOR_EXAMPLES, runDoctor } from "./doctor.ts";
import { ESTIMATE_EXAMPLES, runEstimate } from "./estimate.ts";
import { EVALUATE_EXAMPLES, runEvaluate } from "./evaluate.ts";
import { EXIT, endSentence, reportError, UseError } from "./exit.ts";
import { EXPORT_EXAMPLES, runExport } from "./export.ts";
import {
  addExportOptions,
  addVerifyOptions,
  exportOptions,
  verifyOptions,
} from "./export-options.ts";
import { GENERATE_EXAMPLES, runGenerate } from "./generate.ts";
import { addGenerateOptions, generateOptions } from "./generate-options.ts";
import { INSPECT_EXAMPLES, runInspect } from "./inspect.ts";
import type { Io } from "./io.ts";
import {
  addDoctorOptions,
  addEstimateOptions,
  addEvaluateOptions,
  addInspectOptions,
  addQuantizeOptions,
  doctorOptions,
  estimateOptions,
  evaluateOptions,
  inspectOptions,
  quantizeOptions,
} from "./options.ts";
import { QUANTIZE_EXAMPLES, runQuantize } from "./quantize.ts";
import { runServe, SERVE_EXAMPLES } from "./serve.ts";
import { addServeOptions, serveOptions } from "./serve-options.ts";
import { choice } from "./values.ts";
import { runVerify, VERIFY_EXAMPLES } from "./verify.ts";

const FOOTER = `
Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped on request.
AQ_DEBUG=1 shows where an error came from; AQ_THREADS sets the default of --threads.
`;

/** Runs one command line and returns the exit code. */
export async function main(
  argv: readonly string[],
  io: Io,
  load: ApiLoader = loadApi,
): Promise<number> {
  try {
    await buildProgram(io, load).parseAsync(argv, { from: "user" });
    return EXIT.done;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.misuse;
    return reportError(error, io);
  }
}

/** The commands, declared; exported so that tests can walk them. */
export function buildProgram(io: Io, load: ApiLoader): Command {
  const program = new Command("aq-native")
    .description("AffineQuant for language models: fewer bits, measured, without Python.")
    .version(packageVersion(), "-V, --version", "show the version")
    .helpOption("-h, --help", "show this help")
    .helpCommand(false)
    .addHelpText("after", FOOTER);
  settle(program, io);

  const quantize = program
    .command("quantize")
    .summary("quantize a checkpoint")
    .description(
      "Quantize a checkpoint: learn affine transforms and clipping block by block, fold them into\n" +
        "the weights, write the result and measure it. Without --calib, a text that is shipped with\n" +
        "the package is used for calibration.",
    );
  finish(addQuantizeOptions(quantize), io, QUANTIZE_EXAMPLES).action(async () => {
    await runQuantize(...quantizeOptions(quantize), io, load);
  });

  const evaluate = program
    .command("eval")
    .summary("measure the perplexity of a checkpoint on a text")
    .description(
      "Measure perplexity and its standard error on a text, cut into windows that do not overlap.\n" +
        "A folder that aq-native wrote is evaluated with its activation quantizers.",
    );
  finish(addEvaluateOptions(evaluate), io, EVALUATE_EXAMPLES).action(async () => {
    await runEvaluate(...evaluateOptions(evaluate), io, load);
  });

  const exporting = program
    .command("export")
    .summary("write a finished run in the format that a program loads")
    .description(
      "Write a finished run in another format, from its saved state: the codes that calibration found,\n" +
        "as they are. What is written is read back and compared with the run.",
    );
  finish(addExportOptions(exporting), io, EXPORT_EXAMPLES).action(async () => {
    await runExport(...exportOptions(exporting), io, load);
  });

  const verify = program
    .command("verify")
    .summary("compare what was written with its run, bit for bit")
    .description(
      "Read a folder or a GGUF file that was exported, or all that a run wrote, and compare codes, scales,\n" +
        "zeros and every other tensor with the saved state of the run.",
    );
  finish(addVerifyOptions(verify), io, VERIFY_EXAMPLES).action(async (dir: string) => {
    await runVerify(...verifyOptions(verify, dir), io, load);
  });

  const generate = program
    .command("generate")
    .summary("write text with a model")
    .description(
      "Write on from a prompt with a checkpoint, quantized or not, and stream the text. Packed weights\n" +
        "stay packed; keys and values are kept in 4 bits where the model was calibrated so.",
    );
  finish(addGenerateOptions(generate), io, GENERATE_EXAMPLES).action(async () => {
    await runGenerate(...generateOptions(generate), io, load);
  });

  const serve = program
    .command("serve")
    .summary("answer requests for text over HTTP")
    .description(
      "Answer /v1/completions and /v1/chat/completions, as clients of the OpenAI API send them, with a\n" +
        "checkpoint, quantized or not. Requests that come together are computed together.",
    );
  finish(addServeOptions(serve), io, SERVE_EXAMPLES).action(async () => {
    await runServe(...serveOptions(serve), io, load);
  });

  const inspect = program
    .command("inspect")
    .summary("show what a checkpoint is and what the method will do to it")
    .description("Show family, sizes and dtypes of a checkpoint, and the sites of its blocks.");
  finish(addInspectOptions(inspect), io, INSPECT_EXAMPLES).action(async () => {
    await runInspect(...inspectOptions(inspect), io, load);
  });

  const estimate = program
    .command("estimate")
    .summary("say how long a run would take, and how much memory and disk")
    .description(
      "Estimate time, memory and disk of quantize with the same options, from a short measurement on\n" +
        "this machine. Nothing is written.",
    );
  finish(addEstimateOptions(estimate), io, ESTIMATE_EXAMPLES).action(async () => {
    await runEstimate(...estimateOptions(estimate), io, load);
  });

  const doctor = program
    .command("doctor")
    .summary("say whether this machine can run aq-native, and what to do if not")
    .description(
      "Look at Node.js, the system, the processor, the native addons and the GPU, and say what is\n" +
        "missing and how to get it. Exits with 0 when everything that is needed is there.",
    );
  finish(addDoctorOptions(doctor), io, DOCTOR_EXAMPLES).action(async () => {
    await runDoctor(doctorOptions(doctor), io, load);
  });

  const completion = program
    .command("completion")
    .summary("print a script that completes commands and options in a shell")
    .description("Print a completion script for a shell; it follows the commands of this version.")
    .addArgument(new Argument("<shell>", SHELLS.join(", ")).argParser(choice(SHELLS)));
  finish(completion, io, COMPLETION_EXAMPLES).action((shell: Shell) => {
    runCompletion(shell, program, io);
  });
  addHelpCommand(program, io);
  return program;
}

/** What every command has in common; --help joins the last group of options. */
function finish(
  command: Command,
  io: Io,
  examples: readonly (readonly [string, string])[],
): Command {
  const name = command.name();
  const lines = examples.map(
    ([what, options]) => `  # ${what}\n  ${`aq-native ${name} ${options}`.trimEnd()}\n`,
  );
  command
    .helpOption("-h, --help", "show this help")
    .addHelpText("after", `\nExamples:\n${lines.join("\n")}`);
  settle(command, io);
  return command;
}

/** `help [command]`: commander's own shows the program's help for a command that does not exist. */
function addHelpCommand(program: Command, io: Io): void {
  const help = program
    .command("help")
    .summary("show the help of a command")
    .argument("[command]")
    .helpOption(false)
    .action((name: string | undefined) => {
      if (name === undefined || name === help.name()) program.help();
      program.commands.find((each) => each.name() === name)?.help();
      program.error(`error: unknown command '${name}'`);
    });
  settle(help, io);
}

/** Sends a command's output through `io`, and turns its errors of use into UseErrors. */
function settle(command: Command, io: Io): void {
  command.configureOutput({
    writeOut: (text) => io.stdout.write(text),
    writeErr: (text) => io.stderr.write(text),
    outputError: () => {},
    getOutHelpWidth: () => io.stdout.columns ?? 100,
    getErrHelpWidth: () => io.stderr.columns ?? 100,
    getOutHasColors: () => false,
    getErrHasColors: () => false,
  });
  command.showSuggestionAfterError(false);
  command.exitOverride((error) => {
    if (!error.message.startsWith("error: ")) throw error;
    const sentence = endSentence(error.message.slice("error: ".length));
    throw new UseError(`${sentence}${suggestion(command, sentence)} See ${helpOf(command)}.`);
  });
}

/** " Did you mean --wbits?" for an unknown option or command, else nothing. */
function suggestion(command: Command, sentence: string): string {
  const asked = /^unknown (option|command) '([^']*)'/.exec(sentence);
  if (!asked) return "";
  const word = (asked[2] ?? "").replace(/=.*/s, "");
  const known =
    asked[1] === "command"
      ? command.commands.map((each) => each.name())
      : command.options.flatMap((option) => option.long ?? []);
  const near = nearest(word, known);
  return near === undefined ? "" : ` Did you mean ${near}?`;
}

function helpOf(command: Command): string {
  return command.parent ? `aq-native ${command.name()} --help` : "aq-native --help";
}
