/** `aq-native completion`: a script that completes commands, options and values in a shell. */
import type { Command } from "commander";
import { bashScript } from "./completion-bash.ts";
import { fishScript } from "./completion-fish.ts";
import { readCommands } from "./completion-model.ts";
import { zshScript } from "./completion-zsh.ts";
import type { Io } from "./io.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

export const COMPLETION_EXAMPLES: readonly [string, string][] = [
  ["bash, for every new shell", "bash >> ~/.bashrc"],
  ["zsh, into a folder of your fpath", "zsh > ~/.zfunc/_aq-native"],
  ["fish", "fish > ~/.config/fish/completions/aq-native.fish"],
];

/** Prints the script for a shell. */
export function runCompletion(shell: Shell, program: Command, io: Io): void {
  const commands = readCommands(program);
  const script = { bash: bashScript, zsh: zshScript, fish: fishScript }[shell];
  io.stdout.write(script(program.name(), commands));
}
