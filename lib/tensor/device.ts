/** Devices, their memory, and the threads of the CPU backend. */

import { AqError } from "../errors.ts";
import { fromNative, native } from "../native/load.ts";
import type { DeviceInfo, MemoryInfo } from "../native/types.ts";
import { guarded } from "./tensor.ts";

/** Names of the devices that can be used: "cpu", and "cuda:0" once the CUDA addon is loaded. */
export function devices(): string[] {
  return guarded(() => native().devices());
}

export function deviceInfo(device: string): DeviceInfo {
  return guarded(() => native().deviceInfo(device));
}

export function memory(device: string): MemoryInfo {
  return guarded(() => native().memory(device));
}

/** Threads that CPU kernels use, for the whole process. */
export function threads(): number {
  return native().threads();
}

/** Sets the number of threads, 1..1024. Throws: AQ_ARG outside. Results do not depend on it. */
export function setThreads(count: number): void {
  if (!Number.isInteger(count) || count < 1 || count > 1024) {
    throw new AqError(
      "AQ_ARG",
      `the number of threads must be a whole number from 1 to 1024, got ${count}`,
    );
  }
  guarded(() => native().setThreads(count));
}

/** Waits on another thread until the device has done what it was given; raises what went wrong there. */
export async function synchronize(device: string): Promise<void> {
  try {
    await native().synchronize(device);
  } catch (error) {
    throw fromNative(error);
  }
}
