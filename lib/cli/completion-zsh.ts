/** The completion script for zsh: sourced, or as a file of the fpath. */
import type { CompletedCommand, CompletedOption } from "./completion-model.ts";

export function zshScript(program: string, commands: readonly CompletedCommand[]): string {
  const name = `_${program}`;
  const list = commands.map(({ name: word, about }) => `    ${quote(`${word}:${about}`)}`);
  const cases = commands.map((command) => {
    const specs = command.options.map((option) => `        ${specOf(option)}`);
    if (command.words.length > 0)
      specs.push(`        ${quote(`1: :(${command.words.join(" ")})`)}`);
    return `      ${command.name})\n      _arguments -s \\\n${specs.join(" \\\n")} ;;`;
  });
  return `#compdef ${program}
# Completion of ${program} for zsh.
${name}() {
  local -a commands
  commands=(
${list.join("\n")}
  )
  if (( CURRENT == 2 )); then
    _describe -t commands command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
${cases.join("\n")}
  esac
}
if [ "$funcstack[1]" = "${name}" ]; then
  ${name} "$@"
else
  compdef ${name} ${program}
fi
`;
}

function specOf({ names, about, value, repeats }: CompletedOption): string {
  const text = about.replace(/[[\]:\\]/g, (character) => `\\${character}`);
  const action = {
    none: "",
    words: value.kind === "words" ? `:value:(${value.words.join(" ")})` : "",
    folder: ":folder:_files -/",
    file: ":file:_files",
    other: ":value: ",
  }[value.kind];
  const group = repeats ? "*" : names.length > 1 ? `(${names.join(" ")})` : "";
  return names.map((option) => quote(`${group}${option}[${text}]${action}`)).join(" \\\n        ");
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
