// Timing, the machine that was measured, and where rows go: the terminal and, asked for, a file of
// JSON lines.
import { execFileSync } from "node:child_process";
import { appendFileSync, mkdirSync } from "node:fs";
import { loadavg } from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { deviceInfo, setThreads, threads } from "../lib/tensor/device.ts";
import { packageRoot } from "../lib/util/package.ts";

/** What every benchmark is given. */
export interface Bench {
  readonly device: string;
  /** Words of which a row's name must contain one; none: every row. */
  readonly filters: readonly string[];
  /** Takes a measurement into the file of --save, if there is one. */
  save(record: Readonly<Record<string, unknown>>): void;
}

/** Seconds of single calls. */
export interface Timing {
  readonly best: number;
  readonly median: number;
  readonly calls: number;
}

/** Best and median of a list of seconds. */
export function summarize(seconds: readonly number[]): Timing {
  const sorted = [...seconds].sort((a, b) => a - b);
  return {
    best: sorted[0] ?? Number.NaN,
    median: sorted[Math.floor(sorted.length / 2)] ?? Number.NaN,
    calls: sorted.length,
  };
}

/** Seconds of one call. */
export function timeOnce(body: () => void): number {
  const start = performance.now();
  body();
  return (performance.now() - start) / 1000;
}

/** Times `body` after a warm-up: as many calls as fit the budget, at least five. */
export function time(body: () => void, budgetSeconds = 0.4): Timing {
  const warmUp = timeOnce(body);
  if (warmUp < budgetSeconds / 4) body();
  const calls = Math.max(5, Math.min(200, Math.floor(budgetSeconds / Math.max(warmUp, 1e-6))));
  return summarize(Array.from({ length: calls }, () => timeOnce(body)));
}

/** How long the calls between two waits for a device take at least. */
const QUEUE_SECONDS = 4e-3;
const QUEUES = 9;

/**
 * Times `bodies` on a device that works off a queue: many calls in turns, then one wait, so that neither
 * the wait nor a cache that held the last call's operands is measured. `wait` returns when the device
 * is done.
 */
export function timeQueue(bodies: readonly (() => void)[], wait: () => void): Timing {
  return timeQueues([bodies], wait)[0] as Timing;
}

/** The same of several things, which take turns: a device's clock moves from one moment to the next. */
export function timeQueues(
  things: readonly (readonly (() => void)[])[],
  wait: () => void,
): readonly Timing[] {
  const runs = things.map((bodies) => {
    let next = 0;
    const run = (calls: number): number =>
      timeOnce(() => {
        for (let i = 0; i < calls; i++) bodies[next++ % bodies.length]?.();
        wait();
      });
    run(2 * bodies.length);
    const few = 2 * bodies.length;
    const calls = Math.max(few, Math.min(4000, Math.ceil(QUEUE_SECONDS / (run(few) / few))));
    return { calls, seconds: [] as number[], once: () => run(calls) / calls };
  });
  for (let i = 0; i < QUEUES; i++) {
    for (const { seconds, once } of runs) seconds.push(once());
  }
  return runs.map(({ calls, seconds }) => ({ ...summarize(seconds), calls: QUEUES * calls }));
}

/** Runs `body` with a number of CPU threads and sets the number back. */
export function withThreads<T>(count: number, body: () => T): T {
  const before = threads();
  setThreads(count);
  try {
    return body();
  } finally {
    setThreads(before);
  }
}

/** Whether a name passes the filters. */
export function isWanted(filters: readonly string[], name: string): boolean {
  return filters.length === 0 || filters.some((filter) => name.includes(filter));
}

function commit(): string {
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd: packageRoot(), encoding: "utf8", stdio: "pipe" }).trim();
  try {
    const changed = git("status", "--porcelain", "--untracked-files=no") !== "";
    return git("rev-parse", "--short", "HEAD") + (changed ? "+changes" : "");
  } catch {
    return "unknown";
  }
}

/** What goes with every record: the machine, the settings and the commit. */
export function machine(device: string): Readonly<Record<string, unknown>> {
  const { name, detail } = deviceInfo(device);
  const simd = device === "cpu" ? { simd: detail.split(",")[0] } : {};
  return {
    date: new Date().toISOString(),
    commit: commit(),
    device,
    processor: name,
    ...simd,
    threads: threads(),
    node: process.version,
    // Above zero before the first row: something else is running, and rows for two threads suffer.
    load: loadavg()[0],
  };
}

/** A function that appends records to a file of bench/results, or does nothing without one. */
export function saver(file: string | undefined, device: string): Bench["save"] {
  if (file === undefined) return () => {};
  const target = path.resolve(packageRoot(), "bench/results", file);
  mkdirSync(path.dirname(target), { recursive: true });
  const common = machine(device);
  return (record) => appendFileSync(target, `${JSON.stringify({ ...common, ...record })}\n`);
}

/** Prints a line of columns: the first ones left-aligned, numbers right-aligned. */
export function printRow(cells: readonly string[], widths: readonly number[]): void {
  const padded = cells.map((cell, i) => {
    const width = widths[i] ?? 0;
    return width < 0 ? cell.padEnd(-width) : cell.padStart(width);
  });
  process.stdout.write(`${padded.join("  ").trimEnd()}\n`);
}
