/** Ctrl-C and SIGTERM as an AbortSignal: the first asks, the second ends the process at once. */
import type { OutputStream } from "./io.ts";

export interface StopRequest {
  readonly signal: AbortSignal;
  /** Gives the signals back to whoever had them. */
  release(): void;
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

export function stopOnSignals(stderr: OutputStream): StopRequest {
  const controller = new AbortController();
  const release = (): void => {
    for (const name of SIGNALS) process.removeListener(name, onSignal);
  };
  const onSignal = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) {
      release();
      // With our listener gone the signal has its usual effect, and the shell sees it as the cause.
      process.kill(process.pid, name);
      return;
    }
    stderr.write(
      `${stderr.isTTY ? "\r\x1b[K" : ""}Stopping after the step in progress; press Ctrl-C again to stop at once.\n`,
    );
    controller.abort();
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return { signal: controller.signal, release };
}
