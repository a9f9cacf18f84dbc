/**
 * Keeps two processes from working on one run folder. The lock is a file that names its holder; one
 * whose holder is dead counts for nothing, so a killed run needs no cleaning up.
 */

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError } from "../util/fs.ts";
import { isJsonObject } from "../util/json.ts";

/** Name of the lock in a run folder. */
export const LOCK_NAME = "lock";
/** Locks of this process: its own number in a file says nothing about which run holds it. */
const held = new Set<string>();

export class RunLock {
  readonly #file: string;

  private constructor(file: string) {
    this.#file = file;
  }

  /** Throws: AQ_FILE when a living process of this machine holds the lock, or it cannot be written. */
  static acquire(dir: string): RunLock {
    try {
      fs.mkdirSync(dir, { recursive: true });
      const file = path.join(fs.realpathSync(dir), LOCK_NAME);
      const holder = held.has(file) ? process.pid : livingHolder(file);
      if (holder !== null) {
        throw new AqError(
          "AQ_FILE",
          `Process ${holder} is working on ${dir}; wait for it, or name another folder.`,
        );
      }
      fs.writeFileSync(file, `${JSON.stringify(describe(process.pid))}\n`);
      held.add(file);
      return new RunLock(file);
    } catch (error) {
      throw fileError("lock", dir, error);
    }
  }

  release(): void {
    held.delete(this.#file);
    try {
      fs.rmSync(this.#file, { force: true });
    } catch {
      // A lock that cannot be removed ends with this process.
    }
  }
}

interface Holder {
  readonly pid: number;
  readonly host: string;
  /** When it began, where the system says so: process numbers are used again. */
  readonly began: string | null;
}

function describe(pid: number): Holder {
  return { pid, host: os.hostname(), began: processStart(pid) };
}

/** The process that holds a lock, or null; of other machines nothing can be known. */
function livingHolder(file: string): number | null {
  let holder: unknown;
  try {
    holder = JSON.parse(fs.readFileSync(file, "utf8"));
  } catch {
    return null;
  }
  if (!isJsonObject(holder) || typeof holder["pid"] !== "number") return null;
  const { pid } = holder;
  if (holder["host"] !== os.hostname() || pid === process.pid || !isAlive(pid)) return null;
  return holder["began"] === processStart(pid) ? pid : null;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** Ticks since boot at which a process began; null where there is no /proc. */
function processStart(pid: number): string | null {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    // Fields after the name, which is in parentheses and may hold anything.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null;
  } catch {
    return null;
  }
}
