// OpenBLAS as a peer: a small C program in a process of its own, so that its threads and its choice
// of kernels are set by its environment and touch nothing of ours.
import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface, type Interface } from "node:readline";
import { packageRoot } from "../lib/util/package.ts";

/** The kernels of OpenBLAS that fit the processor; a library that is older than it guesses wrong. */
function coreTypes(): readonly string[] {
  let flags = "";
  try {
    flags = /^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? "";
  } catch {
    return [];
  }
  if (/\bavx512f\b/.test(flags)) {
    return /\bavx512_bf16\b/.test(flags) ? ["SkylakeX", "Cooperlake"] : ["SkylakeX"];
  }
  return /\bavx2\b/.test(flags) ? ["Haswell", "Zen"] : [];
}

function compile(folder: string): string {
  const program = path.join(folder, "openblas");
  const source = path.join(packageRoot(), "bench/peers/openblas.c");
  execFileSync("cc", ["-O2", "-o", program, source, "-ldl"], { stdio: "pipe" });
  return program;
}

/** A running peer, or the reason why there is none. */
export class OpenBlas {
  readonly description: string;
  readonly #child: ChildProcessWithoutNullStreams | undefined;
  readonly #lines: AsyncIterator<string> | undefined;
  readonly #reader: Interface | undefined;

  private constructor(
    description: string,
    child?: ChildProcessWithoutNullStreams,
    reader?: Interface,
    lines?: AsyncIterator<string>,
  ) {
    this.description = description;
    this.#child = child;
    this.#reader = reader;
    this.#lines = lines;
  }

  /** The fastest of the kernels that fit, or a peer that answers NaN and says why. */
  static async start(): Promise<OpenBlas> {
    const folder = mkdtempSync(path.join(tmpdir(), "aq-bench-"));
    try {
      const program = compile(folder);
      const [first, ...others] = await Promise.all(
        (coreTypes().length ? coreTypes() : [""]).map((core) => OpenBlas.#spawn(program, core)),
      );
      let best = first ?? new OpenBlas("no OpenBLAS");
      let seconds = await best.time(1024, 5);
      for (const other of others) {
        const time = await other.time(1024, 5);
        const [slower, faster] = time < seconds ? [best, other] : [other, best];
        slower.stop();
        best = faster;
        seconds = Math.min(time, seconds);
      }
      return best;
    } catch (error) {
      const reason = error instanceof Error ? error.message.split("\n")[0] : String(error);
      return new OpenBlas(`no OpenBLAS (${reason})`);
    } finally {
      // A running program keeps its file.
      rmSync(folder, { recursive: true });
    }
  }

  static async #spawn(program: string, core: string): Promise<OpenBlas> {
    const env = {
      ...process.env,
      OPENBLAS_NUM_THREADS: "1",
      ...(core ? { OPENBLAS_CORETYPE: core } : {}),
    };
    const child = spawn(program, [], { env });
    child.stderr.resume();
    const reader = createInterface({ input: child.stdout });
    const lines = reader[Symbol.asyncIterator]();
    const { value, done } = await lines.next();
    if (done || !value.startsWith("OpenBLAS")) throw new Error(value ?? "it did not start");
    return new OpenBlas(value, child, reader, lines);
  }

  /** Seconds of the fastest of `calls` products of n x n matrices, after one untimed. */
  async time(n: number, calls: number): Promise<number> {
    if (!this.#child || !this.#lines) return Number.NaN;
    this.#child.stdin.write(`${n} ${calls}\n`);
    const { value } = await this.#lines.next();
    return Number(value);
  }

  /** Ends the process. */
  stop(): void {
    this.#reader?.close();
    this.#child?.stdin.end();
  }
}
