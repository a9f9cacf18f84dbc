/**
 * The device of a run: chosen by its name, opened with the precision of its matrix products, and given
 * back at the end. A device's precision belongs to the whole environment, so runs that go on at the
 * same time on one GPU must agree on it.
 */

import { AqError } from "../errors.ts";
import { type CudaAddon, cudaAddon, driverVersion, GET_CUDA } from "../native/cuda.ts";
import type { DeviceName, PrecisionName } from "../types.ts";
import { deviceInfo, devices } from "./device.ts";
import { setPrecision } from "./precision.ts";

export const PRECISIONS: readonly PrecisionName[] = ["f32", "bf16", "f16"];

/** The two options of a run. */
export interface ComputeChoice {
  readonly device?: DeviceName | undefined;
  readonly precision?: PrecisionName | undefined;
}

/** A device at work. Whoever opened it releases it, once. */
export interface ComputeDevice {
  /** "cpu", "cuda:0". */
  readonly name: string;
  readonly kind: "cpu" | "cuda";
  readonly precision: PrecisionName;
  /** For people: what it is, and how it computes. */
  readonly description: string;
  /** Why `auto` did not take a GPU that one might expect, or undefined. */
  readonly note?: string | undefined;
  release(): void;
}

/** Precision of the devices at work, and how many runs are on each. */
const claims = new Map<string, { readonly precision: PrecisionName; users: number }>();

/** Checks the two options without looking at the machine. Throws: AQ_ARG. */
export function checkChoice({ device = "auto", precision }: ComputeChoice): void {
  if (!/^(auto|cpu|cuda|cuda:\d{1,3})$/.test(device)) {
    throw new AqError(
      "AQ_ARG",
      `device must be auto, cpu, cuda or cuda:N with the number of a GPU, got ${JSON.stringify(device)}`,
    );
  }
  if (precision === undefined) return;
  if (!PRECISIONS.includes(precision)) {
    throw new AqError(
      "AQ_ARG",
      `precision must be ${PRECISIONS.join(" or ")}, got ${JSON.stringify(precision)}`,
    );
  }
  if (device === "cpu") checkCpuPrecision(precision);
}

function checkCpuPrecision(precision: PrecisionName): void {
  if (precision === "f32") return;
  throw new AqError(
    "AQ_ARG",
    `precision ${precision} needs a GPU, and this runs on the CPU, which computes in f32: leave --precision out`,
  );
}

/**
 * Opens the device of a run: the named one, or with `auto` the first GPU where there is one.
 *
 * Throws: AQ_ARG for a bad option, AQ_ADDON or AQ_DEVICE when a GPU was asked for that cannot be used,
 * with what is missing.
 */
export function openDevice(
  choice: ComputeChoice,
  addon: () => CudaAddon = cudaAddon,
): ComputeDevice {
  checkChoice(choice);
  const { device = "auto", precision } = choice;
  if (device === "cpu") return openCpu(precision);
  const state = addon();
  if (device === "auto") {
    const first = state.state === "ready" ? gpus()[0] : undefined;
    if (first !== undefined) return openGpu(first, precision);
    const note =
      state.state === "unusable"
        ? `the CUDA addon ${state.file} cannot be used and the run is on the CPU: ${state.reason}`
        : undefined;
    return openCpu(precision, note);
  }
  return openGpu(namedGpu(device, state), precision);
}

function gpus(): string[] {
  return devices().filter((name) => name !== "cpu");
}

/** The engine's name of the GPU that was asked for. Throws: AQ_ADDON, AQ_DEVICE. */
function namedGpu(asked: string, addon: CudaAddon): string {
  if (addon.state === "absent") {
    throw new AqError(
      "AQ_ADDON",
      `--device ${asked} needs the CUDA addon, which is not here: ${GET_CUDA}; --device cpu does without`,
    );
  }
  if (addon.state === "unusable") {
    throw new AqError(
      "AQ_ADDON",
      `--device ${asked}: the CUDA addon ${addon.file} cannot be used, ${addon.reason}; ${GET_CUDA}`,
    );
  }
  const known = gpus();
  const name = asked === "cuda" ? "cuda:0" : `cuda:${Number(asked.slice("cuda:".length))}`;
  if (known.includes(name)) return name;
  if (known.length > 0) {
    const list = known.map((gpu) => `${gpu} (${deviceInfo(gpu).name})`).join(", ");
    throw new AqError("AQ_DEVICE", `there is no device ${name} on this machine; it has ${list}`);
  }
  const driver = driverVersion();
  const why =
    driver === undefined
      ? "no NVIDIA driver is found; install one"
      : `the NVIDIA driver ${driver} shows no GPU to this process; see nvidia-smi and CUDA_VISIBLE_DEVICES`;
  throw new AqError(
    "AQ_DEVICE",
    `there is no device ${name} on this machine: ${why}, or use --device cpu`,
  );
}

function openCpu(precision: PrecisionName | undefined, note?: string): ComputeDevice {
  if (precision !== undefined) checkCpuPrecision(precision);
  return {
    name: "cpu",
    kind: "cpu",
    precision: "f32",
    description: deviceInfo("cpu").detail,
    note,
    release: () => {},
  };
}

function openGpu(name: string, asked: PrecisionName | undefined): ComputeDevice {
  const claim = claims.get(name);
  const precision = asked ?? claim?.precision ?? "bf16";
  if (claim && claim.precision !== precision) {
    throw new AqError(
      "AQ_DEVICE",
      `${name} is at work for another run of this process with ${claim.precision} products, and this one wants ${precision}: run them one after the other, or in worker threads`,
    );
  }
  if (claim) claim.users++;
  else {
    setPrecision(name, precision);
    claims.set(name, { precision, users: 1 });
  }
  let released = false;
  return {
    name,
    kind: "cuda",
    precision,
    description: `${name} ${deviceInfo(name).name}, ${precision} products`,
    release() {
      if (released) return;
      released = true;
      const held = claims.get(name);
      if (!held || --held.users > 0) return;
      claims.delete(name);
      setPrecision(name, "f32");
    },
  };
}

/**
 * Runs `body` with f32 products, whatever precision the device is opened with: for comparisons whose
 * error must not be the products'. The body must not be asynchronous.
 */
export function withFullPrecision<T>(device: string, body: () => T): T {
  const precision = claims.get(device)?.precision;
  if (precision === undefined || precision === "f32") return body();
  setPrecision(device, "f32");
  try {
    return body();
  } finally {
    setPrecision(device, precision);
  }
}
