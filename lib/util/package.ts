/** Where this package lies and which version it is; the same for sources and for compiled files. */

import { existsSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { AqError } from "../errors.ts";

let found: { root: string; version: string } | undefined;

function locate(): { root: string; version: string } {
  if (found) return found;
  for (let dir = path.dirname(fileURLToPath(import.meta.url)); ; dir = path.dirname(dir)) {
    const manifest = path.join(dir, "package.json");
    if (existsSync(manifest)) {
      const { name, version } = JSON.parse(readFileSync(manifest, "utf8")) as {
        name?: unknown;
        version?: unknown;
      };
      if (name === "aq-native") {
        found = { root: dir, version: String(version) };
        return found;
      }
    }
    if (path.dirname(dir) === dir) break;
  }
  throw new AqError(
    "AQ_ADDON",
    "The package aq-native is incomplete: there is no package.json above its code; install it again.",
  );
}

/** Folder that holds package.json, assets/ and the native addon. Throws: AQ_ADDON. */
export function packageRoot(): string {
  return locate().root;
}

export function packageVersion(): string {
  return locate().version;
}
