/** The completion script for bash, 3.2 and later. */
import type { CompletedCommand, ValueKind } from "./completion-model.ts";

export function bashScript(program: string, commands: readonly CompletedCommand[]): string {
  const name = `_${program.replaceAll("-", "_")}`;
  const values: string[] = [];
  const unknown: string[] = [];
  const words: string[] = [];
  for (const command of commands) {
    for (const { names, value } of command.options) {
      if (value.kind === "none") continue;
      const patterns = names.map((option) => `${command.name}:${option}`);
      if (value.kind === "other") unknown.push(...patterns);
      else values.push(`    ${patterns.join(" | ")}) ${answer(value, name)}; return ;;`);
    }
    const all = [...command.options.flatMap((option) => option.names), ...command.words];
    words.push(`    ${command.name}) words="${all.join(" ")}" ;;`);
  }
  if (unknown.length > 0) values.push(`    ${unknown.join(" | ")}) return ;;`);
  return `# Completion of ${program} for bash.
${name}() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" prev="\${COMP_WORDS[COMP_CWORD-1]}"
  local cmd="\${COMP_WORDS[1]}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${[...commands.map((command) => command.name), "--help", "--version"].join(" ")}"
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    return
  fi
  case "$cmd:$prev" in
${values.join("\n")}
  esac
  case "$cmd" in
${words.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
${name}_paths() {
  # Names with spaces stay whole, and bash adds the slash of a folder where it knows how.
  local path
  compopt -o filenames 2>/dev/null
  while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen "$1" -- "$2")
}
complete -F ${name} ${program}
`;
}

function answer(
  value: Exclude<ValueKind, { kind: "none" } | { kind: "other" }>,
  name: string,
): string {
  if (value.kind === "words")
    return `COMPREPLY=($(compgen -W "${value.words.join(" ")}" -- "$cur"))`;
  return `${name}_paths ${value.kind === "folder" ? "-d" : "-f"} "$cur"`;
}
