/** Kinds of options: what all commands have in common in how they are declared and read. */
import { type Command, Option } from "commander";
import type { DeviceName, PrecisionName } from "../types.ts";
import { choice, deviceName, integer } from "./values.ts";

const PRECISIONS = ["f32", "bf16", "f16"] as const satisfies readonly PrecisionName[];
const MAX_THREADS = 1024;

export interface OutputOptions {
  readonly json?: true;
  /** Say what would be done, and do not do it. */
  readonly dryRun?: true;
}

export function flag(flags: string, description: string): Option {
  return new Option(flags, description);
}

export function valued<T>(flags: string, description: string, read: (text: string) => T): Option {
  return new Option(flags, description).argParser(read);
}

/** An option of one value or more, which may be given again; all values together are its value. */
export function repeated<T>(flags: string, description: string, read: (text: string) => T): Option {
  const gather = (text: string, before?: readonly T[]): readonly T[] => [
    ...(before ?? []),
    read(text),
  ];
  return new Option(flags, description).argParser(gather);
}

/**
 * An option that must be given. Commander's own mandatory options are checked before unknown ones,
 * so that `--modle x` would get no suggestion; requireAll checks after them.
 */
class RequiredOption extends Option {}

export function required<T>(flags: string, description: string, read: (text: string) => T): Option {
  return new RequiredOption(flags, `${description} (required)`).argParser(read);
}

export function requireAll(command: Command): void {
  for (const option of command.options) {
    if (!(option instanceof RequiredOption)) continue;
    if (command.getOptionValue(option.attributeName()) === undefined) {
      command.error(`error: required option '${option.flags}' not specified`);
    }
  }
}

export function threads(): Option {
  return valued(
    "--threads <n>",
    "of the CPU (default: AQ_THREADS, or all cores)",
    integer(1, MAX_THREADS),
  );
}

export function device(): Option {
  return valued<DeviceName>(
    "--device <name>",
    "auto (a GPU where there is one), cpu, cuda, cuda:1, ... (default: auto)",
    deviceName,
  );
}

export function precision(): Option {
  return valued(
    "--precision <type>",
    "of the products on a GPU: bf16, f16 or f32 (default: bf16; the CPU has f32)",
    choice(PRECISIONS),
  );
}

export function json(description: string): Option {
  return flag("--json", description);
}
