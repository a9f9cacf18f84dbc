// Builds the CPU addon with node-gyp. Incremental: configuring again picks up new files and make
// compiles only what changed.
import { spawnSync } from "node:child_process";
import { existsSync, utimesSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, dirname, join } from "node:path";
import { addonFile, root } from "./addon-files.mjs";

/**
 * Builds the addon of a folder, this package unless said otherwise; on failure ends the process with
 * one sentence of advice. Returns the built file.
 */
export function buildAddon(folder = root, environment = {}) {
  const [program, ...first] = findNodeGyp();
  const startedAt = new Date();
  const run = spawnSync(
    program,
    [...first, "configure", "build", "--release", "--loglevel=error", ...headers()],
    {
      cwd: folder,
      stdio: "inherit",
      env: { ...process.env, JOBS: process.env.JOBS ?? "max", ...environment },
    },
  );
  const built = join(folder, addonFile);
  if (run.error || run.status !== 0 || !existsSync(built)) {
    const cause = run.error ? run.error.message : `node-gyp ended with ${run.status ?? run.signal}`;
    console.error(`aq-native: the native addon could not be built (${cause}). ${advice()}`);
    process.exit(1);
  }
  // Dated to the start, so that a source saved during the build counts as newer than the addon.
  utimesSync(built, startedAt, startedAt);
  return built;
}

/** The command of node-gyp: the one that the package manager brings, ours, or one on the PATH. */
function findNodeGyp() {
  const bundled = process.env.npm_config_node_gyp;
  if (bundled && existsSync(bundled)) return [process.execPath, bundled];
  try {
    const require = createRequire(import.meta.url);
    return [process.execPath, require.resolve("node-gyp/bin/node-gyp.js")];
  } catch {
    return ["node-gyp"];
  }
}

/**
 * The headers that came with this Node.js, where they did (its archives and most systems' packages
 * have them): node-gyp then need not download them. A choice of the user's goes first.
 */
export function headers() {
  const prefix = dirname(dirname(process.execPath));
  const isChosen =
    process.env.npm_config_nodedir ?? process.env.npm_package_config_node_gyp_nodedir;
  const isComplete = ["node_api.h", "common.gypi"].every((name) =>
    existsSync(join(prefix, "include/node", name)),
  );
  return isComplete && !isChosen ? [`--nodedir=${prefix}`] : [];
}

function advice() {
  const missing = [];
  if (!process.env.CXX && !["c++", "g++", "clang++"].some(isOnPath)) {
    missing.push("a C++20 compiler");
  }
  if (!isOnPath("make")) missing.push("make");
  if (!process.env.PYTHON && !["python3", "python"].some(isOnPath)) missing.push("python3");
  const needs =
    "Building needs a C++20 compiler (g++ 11 or clang 14, or later), make and python3; on Debian or " +
    "Ubuntu: apt-get install g++ make python3.";
  return missing.length > 0
    ? `Not found on this machine: ${missing.join(", ")}. ${needs}`
    : `${needs} The compiler's messages are above.`;
}

export function isOnPath(name) {
  const folders = (process.env.PATH ?? "").split(delimiter);
  return folders.some((folder) => existsSync(join(folder, name)));
}
