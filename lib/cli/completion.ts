/** `aq-native completion`: a script that completes commands, options and values in a shell. */
import type { Argument, Command, Option } from "commander";
import { bashScript } from "./completion-bash.ts";
import { fishScript } from "./completion-fish.ts";
import { zshScript } from "./completion-zsh.ts";
import type { Io } from "./io.ts";
import type { ValueReader } from "./values.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

export const COMPLETION_EXAMPLES: readonly [string, string][] = [
  ["bash, for every new shell", "bash >> ~/.bashrc"],
  ["zsh", 'zsh > "${fpath[1]}/_aq-native"'],
  ["fish", "fish > ~/.config/fish/completions/aq-native.fish"],
];

/** What may follow an option: nothing, one of some words, a path, or something nobody can guess. */
export type ValueKind =
  | { readonly kind: "none" | "folder" | "file" | "other" }
  | { readonly kind: "words"; readonly words: readonly string[] };

export interface CompletedOption {
  /** "--wbits", and "-h" where there is one. */
  readonly names: readonly string[];
  readonly about: string;
  readonly value: ValueKind;
}

export interface CompletedCommand {
  readonly name: string;
  readonly about: string;
  readonly options: readonly CompletedOption[];
  /** What its argument may be. */
  readonly words: readonly string[];
}

/** Prints the script for a shell. */
export function runCompletion(shell: Shell, program: Command, io: Io): void {
  const commands = readCommands(program);
  const script = { bash: bashScript, zsh: zshScript, fish: fishScript }[shell];
  io.stdout.write(script(program.name(), commands));
}

/** The commands of a program with all that can be completed. */
export function readCommands(program: Command): CompletedCommand[] {
  const names = program.commands.map((command) => command.name());
  return program.commands.map((command) => ({
    name: command.name(),
    about: command.summary(),
    options: optionsOf(command),
    words: command.registeredArguments.flatMap((argument) =>
      command.name() === "help" ? names : (wordsOf(argument) ?? []),
    ),
  }));
}

function optionsOf(command: Command): CompletedOption[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .map((option) => ({
      names: [option.long, option.short].filter((name) => name !== undefined && name !== null),
      about: option.description,
      value: valueOf(option),
    }));
}

function valueOf(option: Option): ValueKind {
  if (!option.required && !option.optional) return { kind: "none" };
  const words = wordsOf(option);
  if (words) return { kind: "words", words };
  if (option.flags.includes("<dir>")) return { kind: "folder" };
  return { kind: option.flags.includes("<file>") ? "file" : "other" };
}

function wordsOf({ parseArg }: Option | Argument): readonly string[] | undefined {
  return (parseArg as ValueReader<unknown> | undefined)?.words;
}
