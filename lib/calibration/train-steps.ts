/**
 * Steps one after the other. At most one is in flight: while it is not known yet what came of it, the
 * next one is made ready.
 */

import type { StepRecorder } from "./step-recorder.ts";
import { type StepParts, type StepResult, type Submitted, submitStep } from "./train-step.ts";

/**
 * Runs a step for each item. `settle` is told in order what came of it, and ends them by returning false;
 * the next one is then not applied. But with a recorder it may have been, where it was run from a
 * recording: whoever gives one gives the parameters up when `settle` refuses.
 *
 * Afterwards nothing is in flight, whatever was thrown.
 */
export async function trainSteps<T>(
  items: Iterable<T>,
  partsOf: (item: T) => StepParts,
  settle: (item: T, result: StepResult) => Promise<boolean>,
  recorder?: StepRecorder,
): Promise<void> {
  let inFlight: (Submitted & { readonly item: T }) | undefined;
  const settleLast = async (): Promise<boolean> => {
    const last = inFlight;
    inFlight = undefined;
    return last === undefined || settle(last.item, await last.result);
  };
  /** Settles the last step while the device has this one already. */
  const run = async (item: T, result: Promise<StepResult>): Promise<boolean> => {
    // It may fail while the last one is awaited.
    result.catch(() => {});
    let goesOn = false;
    try {
      goesOn = await settleLast();
    } finally {
      if (!goesOn) await result.catch(() => {});
    }
    inFlight = { item, result };
    return goesOn;
  };
  try {
    for (const item of items) {
      const parts = partsOf(item);
      const recorded = recorder?.find(parts);
      if (recorded) {
        if (!(await run(item, recorded.run(parts)))) return;
      } else {
        const submitted = await submitStep(parts, settleLast);
        if (!submitted) return;
        inFlight = { item, ...submitted };
      }
    }
    await settleLast();
  } catch (error) {
    // What went wrong in it came first.
    await inFlight?.result;
    throw error;
  }
}
