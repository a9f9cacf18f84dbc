/** Finds and loads the native addon, and says what to do when there is none. */

import { createRequire } from "node:module";
import { AqError, type AqErrorCode } from "../errors.ts";
import { packageRoot } from "../util/package.ts";
import type { NativeCore } from "./types.ts";

let loaded: NativeCore | undefined;

/**
 * The engine, loaded once per environment.
 *
 * Throws: AQ_ADDON with the loader's own words and the command that builds the addon.
 */
export function native(): NativeCore {
  if (loaded) return loaded;
  const root = packageRoot();
  const require = createRequire(import.meta.url);
  try {
    loaded = (require("node-gyp-build") as (root: string) => NativeCore)(root);
    return loaded;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split("\n")[0] : String(cause);
    throw new AqError(
      "AQ_ADDON",
      `cannot load the native addon for ${process.platform}-${process.arch}, Node ${process.version}: ${reason}; ` +
        `build it with "npm run build:native" in ${root} (needs a C++20 compiler, make and python3)`,
      { cause },
    );
  }
}

/** Turns an error of the addon into an AqError; anything else passes through. */
export function fromNative(error: unknown): unknown {
  if (error instanceof Error && !(error instanceof AqError)) {
    const code = (error as Error & { code?: unknown }).code;
    if (typeof code === "string" && code.startsWith("AQ_")) {
      return new AqError(code as AqErrorCode, error.message, { cause: error });
    }
  }
  return error;
}
