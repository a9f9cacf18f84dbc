/** Exit codes, and the one sentence that an error becomes. */
import { AqError } from "../errors.ts";
import type { Io } from "./io.ts";

/** 0 done, 1 failed, 2 wrong use, 75 stopped (sysexits' EX_TEMPFAIL: running it again makes sense). */
export const EXIT = { done: 0, failed: 1, misuse: 2, stopped: 75 } as const;

/** The command line itself was wrong; the sentence says how. */
export class UseError extends Error {
  constructor(sentence: string) {
    super(sentence);
    this.name = "UseError";
  }
}

/** Writes the sentence, and with AQ_DEBUG=1 where the error came from. Returns the exit code. */
export function reportError(error: unknown, io: Io): number {
  const debug = Boolean(io.env["AQ_DEBUG"]) && io.env["AQ_DEBUG"] !== "0";
  io.stderr.write(`aq-native: ${sentenceOf(error, debug)}\n`);
  if (debug && !(error instanceof UseError)) io.stderr.write(`${traceOf(error)}\n`);
  if (error instanceof UseError) return EXIT.misuse;
  return error instanceof AqError && error.code === "AQ_STOPPED" ? EXIT.stopped : EXIT.failed;
}

function sentenceOf(error: unknown, debug: boolean): string {
  const message = oneLine(error instanceof Error ? error.message || error.name : String(error));
  if (error instanceof AqError || error instanceof UseError) return message;
  const advice = debug ? "" : " Run again with AQ_DEBUG=1 to see where it happened.";
  return `unexpected error: ${endSentence(message)}${advice}`;
}

function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, " ");
}

/** Adds the full stop that an error message often lacks. */
export function endSentence(text: string): string {
  return /[.?!]$/.test(text) ? text : `${text}.`;
}

function traceOf(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  while (current !== undefined && parts.length < 8) {
    parts.push(current instanceof Error ? (current.stack ?? current.message) : String(current));
    current = current instanceof Error ? current.cause : undefined;
  }
  return parts.join("\ncaused by: ");
}
