/**
 * Ops that are recorded once and enqueued again and again by one call each: a CUDA graph. A step of a
 * small model is hundreds of ops that take the device less time than the calls take JavaScript.
 */

import { AqError } from "../errors.ts";
import { native } from "../native/load.ts";
import type { GraphHandle } from "../native/types.ts";
import { guarded } from "./tensor.ts";

/**
 * Whether steps of a device are worth recording: on the CPU calls are cheap. AQ_GRAPH=0 switches it off, to
 * look for what recordings might hide.
 */
export function recordsSteps(device: string): boolean {
  return device !== "cpu" && process.env["AQ_GRAPH"] !== "0";
}

/** A recorded sequence of ops. */
export class CapturedGraph {
  readonly #handle: GraphHandle;

  /** Takes ownership of a handle of the engine. */
  constructor(handle: GraphHandle) {
    this.#handle = handle;
  }

  /**
   * Enqueues the ops once more, on the tensors that they were recorded with: what these hold by then
   * is read, and what the ops write is written anew.
   */
  launch(): void {
    guarded(() => this.#handle.launch());
  }

  /**
   * Frees the graph and the memory of its temporary tensors. Tensors that were made while recording
   * and are still alive stay so. Twice is harmless.
   */
  dispose(): void {
    this.#handle.dispose();
  }
}

/** Errors that say that something cannot be recorded, or not for want of memory. */
const UNRECORDABLE: ReadonlySet<string> = new Set(["AQ_UNSUPPORTED", "AQ_CUDA", "AQ_OOM"]);

/**
 * Records the ops that `body` invokes on a device; they are not run before `launch`, and the tensors
 * that `body` makes hold nothing before. Undefined where the device does not record (the CPU) or the
 * body does what cannot be recorded, such as reading a tensor or writing one from JavaScript: run it
 * as usual then. It should have been run as usual once before, so that what is set up at first use is.
 *
 * The caller keeps alive what the ops touch and `body` did not make; a tensor that `body` disposes is
 * kept for it. Make state that goes from one run to the next before recording.
 *
 * Throws: what `body` throws otherwise; then nothing is recorded.
 */
export function capture(device: string, body: () => void): CapturedGraph | undefined {
  try {
    if (!guarded(() => native().captureBegin(device))) return undefined;
    try {
      body();
    } catch (error) {
      native().captureAbandon(device);
      throw error;
    }
    return new CapturedGraph(guarded(() => native().captureEnd(device)));
  } catch (error) {
    if (error instanceof AqError && UNRECORDABLE.has(error.code)) return undefined;
    throw error;
  }
}
