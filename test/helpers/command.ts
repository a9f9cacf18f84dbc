/** The built command as a process: run to its end, or killed at a moment that its events tell of. */
import { spawn, spawnSync } from "node:child_process";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { expect } from "vitest";
import type { QuantizeEvent } from "../../lib/types.ts";

const ROOT = path.join(import.meta.dirname, "..", "..");
export const COMMAND: string = path.join(ROOT, "dist", "bin", "aq-native.js");

export interface Outcome {
  /** Null when a signal ended the process. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function environment(): NodeJS.ProcessEnv {
  const { AQ_DEBUG: _, ...env } = process.env;
  // What these tests expect to the byte is the CPU's.
  return { ...env, CUDA_VISIBLE_DEVICES: "" };
}

export function runCommand(...args: readonly string[]): Outcome {
  const child = spawnSync(process.execPath, [COMMAND, ...args], {
    encoding: "utf8",
    env: environment(),
  });
  return { code: child.status, stdout: child.stdout, stderr: child.stderr };
}

/** Options of the command that make a run of a second. */
export function quantizeArgs(
  options: Readonly<Record<string, string | number | undefined>>,
): string[] {
  const all = { wbits: 4, abits: 4, nsamples: 2, seqlen: 64, epochs: 2, ...options };
  return [
    "quantize",
    ...Object.entries(all).flatMap(([name, value]) =>
      value === undefined ? [] : [`--${name}`, String(value)],
    ),
  ];
}

export interface Interrupted extends Outcome {
  readonly events: readonly QuantizeEvent[];
  readonly signal: NodeJS.Signals | null;
}

/**
 * Runs the command with --json and sends it a signal at the first event for which `when` holds, or
 * after `ms`.
 */
export function interrupt(
  args: readonly string[],
  signal: NodeJS.Signals,
  when: ((event: QuantizeEvent) => boolean) | number,
): Promise<Interrupted> {
  const child = spawn(process.execPath, [COMMAND, ...args, "--json"], {
    stdio: ["ignore", "pipe", "pipe"],
    env: environment(),
  });
  const events: QuantizeEvent[] = [];
  let stderr = "";
  let sent = false;
  const send = (): void => {
    if (!sent) child.kill(signal);
    sent = true;
  };
  const timer = typeof when === "number" ? setTimeout(send, when) : undefined;
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  createInterface({ input: child.stdout }).on("line", (line) => {
    let event: QuantizeEvent;
    try {
      event = JSON.parse(line) as QuantizeEvent;
    } catch {
      // The last line of a killed process may be cut.
      return;
    }
    events.push(event);
    if (typeof when === "function" && when(event)) send();
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, endedBy) => {
      clearTimeout(timer);
      resolve({ code, signal: endedBy, stdout: "", stderr, events });
    });
  });
}

/** Asserts an exit code and one sentence on stderr, behind whatever the run said before it failed. */
export function expectSentence(
  outcome: Outcome,
  code: number,
  ...parts: readonly (string | RegExp)[]
): void {
  expect({ code: outcome.code, stderr: outcome.stderr }).toMatchObject({ code });
  const lines = outcome.stderr.trimEnd().split("\n");
  const sentences = lines.filter((line) => line.startsWith("aq-native: "));
  expect(sentences).toEqual([lines.at(-1)]);
  expect(outcome.stderr).not.toMatch(/\n\s+at |unexpected error/);
  for (const part of parts) expect(sentences[0]).toMatch(part);
}
