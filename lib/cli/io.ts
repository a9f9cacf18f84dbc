/** Where a command reads its surroundings from and writes to; tests pass their own. */

/** The part of a Node.js writable stream that the command line uses. */
export interface OutputStream {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

export interface Io {
  /** Results, and everything when --json is given. */
  readonly stdout: OutputStream;
  /** Progress for people, and errors. */
  readonly stderr: OutputStream;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Milliseconds of a clock that never goes back. */
  readonly now: () => number;
}

/** The streams, environment and clock of this process. */
export function processIo(): Io {
  return {
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
    now: () => performance.now(),
  };
}

/** Whether this stream shows colours: a terminal that is not dumb, and NO_COLOR is not set. */
export function showsColors(stream: OutputStream, env: Io["env"]): boolean {
  return stream.isTTY === true && !env["NO_COLOR"] && env["TERM"] !== "dumb";
}
