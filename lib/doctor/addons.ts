/** The native addons: which file is taken, whether it loads, and whether it computes. */

import { createRequire } from "node:module";
import * as path from "node:path";
import {
  type CudaAddon,
  cudaAddon,
  driverVersion,
  findAddon,
  firstLine,
  GET_CUDA,
} from "../native/cuda.ts";
import { native } from "../native/load.ts";
import { deviceInfo, devices, threads } from "../tensor/device.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { byteSize, plural } from "../util/format.ts";
import { packageRoot } from "../util/package.ts";
import { loadAdvice } from "./advice.ts";
import type { DoctorCheck } from "./check.ts";

const BUILD = 'npm run build:native (in a checkout) or "npm rebuild aq-native --build-from-source"';
const BUILD_CUDA = "npm run build:cuda (needs CMake and the CUDA toolkit)";

const require = createRequire(import.meta.url);

/** The addon that everything runs on. `root` is the package's own, but for tests. */
export function checkCpuAddon(root: string = packageRoot()): DoctorCheck {
  const name = "CPU addon";
  const found = findAddon(root);
  if ("error" in found) return unloaded(name, found.error, BUILD, {});
  const shown = path.relative(root, found.file);
  try {
    require(found.file);
  } catch (error) {
    return unloaded(name, `${shown} does not load: ${firstLine(error)}`, BUILD, {
      path: found.file,
    });
  }
  return {
    name,
    status: "ok",
    text: `${shown} loads`,
    advice: null,
    facts: { path: found.file },
  };
}

function unloaded(
  name: string,
  text: string,
  build: string,
  facts: Readonly<Record<string, unknown>>,
): DoctorCheck {
  return { name, status: "problem", text, advice: loadAdvice(text, build), facts };
}

/** Opens the CPU device and computes a product whose value is known. Needs a CPU addon that loads. */
export function checkCompute(): DoctorCheck {
  const name = "computing";
  try {
    const { detail } = deviceInfo("cpu");
    const product = trialProduct();
    const simd = detail.split(",")[0] ?? "";
    const isRight = product === EXPECTED;
    return {
      name,
      status: isRight ? "ok" : "problem",
      text: isRight
        ? `${simd} kernels, ${plural(threads(), "thread")}, interface version ${native().abiVersion}`
        : `a small product came out wrong (${product}, expected ${EXPECTED}) with ${simd} kernels`,
      advice: isRight ? null : `Try AQ_SIMD=plain, and report it. Then build again: ${BUILD}.`,
      facts: { simd, threads: threads(), abiVersion: native().abiVersion },
    };
  } catch (error) {
    return { name, status: "problem", text: firstLine(error), advice: null, facts: {} };
  }
}

/** Sum of squares of X X: every row of X is -3..4 with sum 4, so every row of the product is 4 x. */
const EXPECTED = 8 * 16 * (9 + 4 + 1 + 0 + 1 + 4 + 9 + 16);

function trialProduct(): number {
  return scope(() => {
    const x = Tensor.from(
      Float32Array.from({ length: 64 }, (_, i) => (i % 8) - 3),
      [1, 8, 8],
    );
    const y = invokeOne("matmul", [x, x], { alpha: 1, trans_a: 0, trans_b: 0 });
    return invokeOne("sq_diff", [y, undefined]).item();
  });
}

/** The driver that the CUDA addon needs. */
export function checkGpuDriver(file?: string): DoctorCheck {
  const name = "GPU driver";
  const version = driverVersion(file);
  if (version === undefined) {
    return { name, status: "absent", text: "none found", advice: null, facts: { version: null } };
  }
  const facts = { version: version || null };
  return { name, status: "ok", text: `NVIDIA ${version}`.trim(), advice: null, facts };
}

/** The addon for GPUs: optional, so nothing here keeps the package from working. */
export function checkCudaAddon(hasDriver: boolean, addon: CudaAddon = cudaAddon()): DoctorCheck {
  const name = "CUDA addon";
  if (addon.state === "absent") {
    const advice = hasDriver ? `To use the GPU, ${GET_CUDA}.` : null;
    return { name, status: "absent", text: "not there (optional)", advice, facts: {} };
  }
  const facts = { path: addon.file };
  if (addon.state === "unusable") {
    const { reason } = addon;
    return { name, status: "note", text: reason, advice: loadAdvice(reason, BUILD_CUDA), facts };
  }
  const gpus = devices().filter((device) => device.startsWith("cuda"));
  const described = gpus.map((device) => ({ device, ...deviceInfo(device) }));
  const list = described.map(
    (gpu) => `${gpu.device} ${gpu.name}, ${byteSize(gpu.totalBytes)}, ${gpu.detail}`,
  );
  const none = hasDriver ? "loads, but finds no device" : "loads; no driver, so no device";
  return {
    name,
    status: gpus.length > 0 ? "ok" : "note",
    text: list.join("; ") || none,
    advice:
      gpus.length > 0 || !hasDriver
        ? null
        : "Check that nvidia-smi lists a GPU for this user, and CUDA_VISIBLE_DEVICES.",
    facts: { ...facts, devices: described },
  };
}
