/** The completion script for fish. */
import type { CompletedCommand, CompletedOption } from "./completion-model.ts";

export function fishScript(program: string, commands: readonly CompletedCommand[]): string {
  const complete = `complete -c ${program}`;
  const lines = [
    `# Completion of ${program} for fish.`,
    `${complete} -f`,
    `${complete} -n __fish_use_subcommand -s h -l help -d 'show this help'`,
    `${complete} -n __fish_use_subcommand -s V -l version -d 'show the version'`,
  ];
  for (const { name, about } of commands) {
    lines.push(`${complete} -n __fish_use_subcommand -a ${name} -d ${quote(about)}`);
  }
  for (const { name, options, words } of commands) {
    const when = `-n ${quote(`__fish_seen_subcommand_from ${name}`)}`;
    for (const option of options) lines.push(`${complete} ${when} ${specOf(option)}`);
    if (words.length > 0) lines.push(`${complete} ${when} -a ${quote(words.join(" "))}`);
  }
  return `${lines.join("\n")}\n`;
}

function specOf({ names, about, value }: CompletedOption): string {
  const flags = names.map((name) =>
    name.startsWith("--") ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`,
  );
  const action = {
    none: "",
    words: value.kind === "words" ? ` -x -a ${quote(value.words.join(" "))}` : "",
    folder: " -x -a '(__fish_complete_directories)'",
    file: " -r -F",
    other: " -x",
  }[value.kind];
  return `${flags.join(" ")}${action} -d ${quote(about)}`;
}

function quote(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
