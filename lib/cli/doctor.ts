/** `aq-native doctor`. */
import type { DoctorCheck, DoctorResult } from "../doctor.ts";
import { AqError } from "../errors.ts";
import type { ApiLoader } from "./api.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";
import { Screen, type Segment } from "./screen.ts";

export const DOCTOR_EXAMPLES: readonly [string, string][] = [
  ["can this machine run aq-native, and what does it use", ""],
  ["the same for a program, or for a bug report", "--json"],
];

const MARKS: Readonly<Record<DoctorCheck["status"], Segment>> = {
  ok: { text: "ok     ", tone: "good" },
  absent: { text: "-      ", tone: "dim" },
  note: { text: "note   ", tone: "warn" },
  problem: { text: "PROBLEM", tone: "warn" },
};
const NAME_WIDTH = 12;

/** Throws: AQ_ADDON when the machine cannot run the package. */
export async function runDoctor(output: OutputOptions, io: Io, load: ApiLoader): Promise<void> {
  const result = (await load()).doctor();
  if (output.json) new JsonLines(io.stdout, io).write(result);
  else show(result, io);
  if (!result.usable) {
    const names = result.checks.flatMap(({ name, status }) => (status === "problem" ? name : []));
    throw new AqError(
      "AQ_ADDON",
      `this machine cannot run it yet: see what is said of ${names.join(" and ")}.`,
    );
  }
}

function show({ version, root, usable, checks }: DoctorResult, io: Io): void {
  const screen = new Screen(io.stdout, io);
  screen.print([{ text: `aq-native ${version}`, tone: "strong" }, { text: ` in ${root}` }]);
  for (const { name, status, text, advice } of checks) {
    screen.print([MARKS[status], { text: `  ${name.padEnd(NAME_WIDTH)}${text}` }]);
    if (advice !== null) {
      screen.print([{ text: `${" ".repeat(9 + NAME_WIDTH)}${advice}`, tone: "strong" }]);
    }
  }
  if (usable) screen.print([{ text: "All that is needed is here.", tone: "good" }]);
}
