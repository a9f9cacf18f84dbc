/** What a shell can complete, read from the declared commands. */
import type { Argument, Command, Option } from "commander";
import type { ValueReader } from "./values.ts";

/** What may follow an option: nothing, one of some words, a path, or something nobody can guess. */
export type ValueKind =
  | { readonly kind: "none" }
  | { readonly kind: "other" }
  | { readonly kind: "folder" | "file" }
  | { readonly kind: "words"; readonly words: readonly string[] };

export interface CompletedOption {
  /** "--wbits", and "-h" where there is one. */
  readonly names: readonly string[];
  readonly about: string;
  readonly value: ValueKind;
  /** It may be given more than once. */
  readonly repeats: boolean;
}

export interface CompletedCommand {
  readonly name: string;
  readonly about: string;
  readonly options: readonly CompletedOption[];
  /** What its argument may be. */
  readonly words: readonly string[];
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
      value: kindOfValue(option),
      repeats: option.variadic,
    }));
}

function kindOfValue(option: Option): ValueKind {
  if (!option.required && !option.optional) return { kind: "none" };
  const words = wordsOf(option);
  if (words) return { kind: "words", words };
  if (option.flags.includes("<dir>")) return { kind: "folder" };
  return option.flags.includes("<file>") ? { kind: "file" } : { kind: "other" };
}

function wordsOf({ parseArg }: Option | Argument): readonly string[] | undefined {
  return (parseArg as ValueReader<unknown> | undefined)?.words;
}
