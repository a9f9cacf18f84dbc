/**
 * Finds and registers the CUDA addon, which is optional: an own package beside this one, or what
 * `npm run build:cuda` built in a checkout. It loads on machines without a GPU or a driver too, and
 * then has no devices.
 */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { packageRoot } from "../util/package.ts";
import { native } from "./load.ts";

/** The package that brings the addon prebuilt. */
export const CUDA_PACKAGE = "@aq-native/cuda";
/** How to come by the addon, in words. */
export const GET_CUDA: string = `install ${CUDA_PACKAGE}, or in a checkout build it with "npm run build:cuda" (needs CMake and the CUDA toolkit)`;

/** What became of the addon. Without devices it is `ready` all the same. */
export type CudaAddon =
  | { readonly state: "ready"; readonly file: string }
  | { readonly state: "absent" }
  | { readonly state: "unusable"; readonly file: string; readonly reason: string };

interface Finder {
  resolve(dir: string): string;
}

const require = createRequire(import.meta.url);

/** Folders that may hold the addon: a checkout's build goes before a package. */
function folders(): string[] {
  const found = [path.join(packageRoot(), "native", "cuda")];
  try {
    found.push(path.dirname(require.resolve(`${CUDA_PACKAGE}/package.json`)));
  } catch {
    // The package is not installed.
  }
  return found;
}

/** The first line of an error. */
export function firstLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.split("\n")[0]?.trim() ?? "";
}

/** The addon's file that would be loaded from a folder, or why there is none. */
export function findAddon(dir: string): { file: string } | { error: string } {
  try {
    return { file: (require("node-gyp-build") as Finder).resolve(dir) };
  } catch (error) {
    return { error: firstLine(error) };
  }
}

/** The file of the CUDA addon, or undefined. */
function findCuda(dirs: readonly string[]): string | undefined {
  for (const dir of dirs) {
    if (!existsSync(dir)) continue;
    const found = findAddon(dir);
    if ("file" in found) return found.file;
  }
  return undefined;
}

let loaded: CudaAddon | undefined;

/** Loads the addon once per environment and hands its table to the engine. Never throws. */
export function cudaAddon(): CudaAddon {
  loaded ??= loadCuda(folders());
  return loaded;
}

/** Loads the addon from the first of some folders that has one, by `load`. */
export function loadCuda(
  dirs: readonly string[],
  load: (file: string) => unknown = require,
): CudaAddon {
  const file = findCuda(dirs);
  if (file === undefined) return { state: "absent" };
  try {
    const { abi, backend } = load(file) as { abi: number; backend: object };
    const engine = native().abiVersion;
    if (abi !== engine) {
      const reason = `it has interface version ${abi}, and this aq-native needs ${engine}: both must be of the same version`;
      return { state: "unusable", file, reason };
    }
    native().registerBackend(backend);
    return { state: "ready", file };
  } catch (error) {
    return { state: "unusable", file, reason: `it does not load: ${firstLine(error)}` };
  }
}

/** The version of the NVIDIA driver, "" where it is there and does not say; undefined without one. */
export function driverVersion(file = "/proc/driver/nvidia/version"): string | undefined {
  try {
    const line = readFileSync(file, "utf8").split("\n")[0] ?? "";
    return /\b(\d{3,}\.\d+(?:\.\d+)?)\b/.exec(line)?.[1] ?? "";
  } catch {
    return undefined;
  }
}
