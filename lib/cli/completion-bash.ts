/** The completion script for bash, 3.2 and later. */
import type { CompletedCommand } from "./completion.ts";

export function bashScript(program: string, commands: readonly CompletedCommand[]): string {
  const name = `_${program.replaceAll("-", "_")}`;
  const values: string[] = [];
  const words: string[] = [];
  for (const command of commands) {
    for (const { names, value } of command.options) {
      if (value.kind === "none") continue;
      const pattern = names.map((option) => `${command.name}:${option}`).join("|");
      values.push(`    ${pattern}) ${answer(value)} return ;;`);
    }
    const all = [...command.options.flatMap((option) => option.names), ...command.words];
    words.push(`    ${command.name}) words="${all.join(" ")}" ;;`);
  }
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
`.replaceAll("@paths", `${name}_paths`);
}

function answer(value: CompletedCommand["options"][number]["value"]): string {
  switch (value.kind) {
    case "words":
      return `COMPREPLY=($(compgen -W "${value.words.join(" ")}" -- "$cur"));`;
    case "folder":
      return '@paths -d "$cur";';
    case "file":
      return '@paths -f "$cur";';
    default:
      return "";
  }
}
