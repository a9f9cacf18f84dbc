/** What `doctor` found out about one part of the machine. */

export interface DoctorCheck {
  /** "Node.js", "CPU addon", ... */
  readonly name: string;
  /** `absent`: not there and not needed. `problem`: aq-native cannot work until it is solved. */
  readonly status: "ok" | "absent" | "note" | "problem";
  readonly text: string;
  /** What to do about it; null where nothing has to be done. */
  readonly advice: string | null;
  /** The same for programs. */
  readonly facts: Readonly<Record<string, unknown>>;
}
