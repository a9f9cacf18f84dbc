// npm's prepare step, in a checkout only (a package from the registry brings dist/): compiles
// TypeScript to dist/ and the addon to build/, each only when a source is newer than its output.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, rmSync } from "node:fs";
import { join, relative } from "node:path";
import { changedAt, filesBelow, isAddonFresh, root } from "./addon-files.mjs";

const dist = join(root, "dist");
const sources = ["lib", "bin"]
  .flatMap((folder) => filesBelow(join(root, folder)))
  .filter((path) => path.endsWith(".ts"));

if (existsSync(join(root, "tsconfig.json"))) {
  if (!isDistFresh()) compileTypeScript();
  // npx sets the mode when it first links a checkout, and not again for another one at the same place.
  chmodSync(join(dist, "bin/aq-native.js"), 0o755);
  if (!isAddonFresh()) {
    const { buildAddon } = await import("./build-addon.mjs");
    buildAddon();
  }
}

/** The path without extension that a source has below dist/. */
function outputOf(source) {
  return join(dist, relative(root, source)).replace(/\.ts$/, "");
}

/**
 * Whether each source has an output at least as new. Files can be compared one by one because
 * isolatedModules and isolatedDeclarations make every output a function of its source alone.
 */
function isDistFresh() {
  const configuredAt = changedAt(join(root, "tsconfig.json"));
  return sources.every((source) => {
    const newest = Math.max(changedAt(source), configuredAt);
    const output = outputOf(source);
    return changedAt(`${output}.js`) >= newest && changedAt(`${output}.d.ts`) >= newest;
  });
}

function compileTypeScript() {
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  if (!existsSync(tsc)) {
    console.error(
      "aq-native: dist/ is out of date and TypeScript is not installed; run npm ci without --omit=dev.",
    );
    process.exit(1);
  }
  const run = spawnSync(process.execPath, [tsc, "-p", "tsconfig.json", "--noEmitOnError"], {
    cwd: root,
    stdio: "inherit",
  });
  if (run.status !== 0) process.exit(run.status ?? 1);
  removeOrphans();
}

/** Removes outputs whose source is gone, so that no test or package picks them up. */
function removeOrphans() {
  const expected = new Set(sources.map(outputOf));
  for (const path of filesBelow(dist)) {
    const stem = path.replace(/(\.js|\.d\.ts)(\.map)?$/, "");
    if (!expected.has(stem)) rmSync(path);
  }
}
