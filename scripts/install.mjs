// npm's install step: sees to it that a native addon is there that fits this machine.
//
//   in a checkout   build/Release is kept as new as the sources;
//   as a dependency a prebuilt binary of the package is taken where one fits and loads, else the
//                   addon is built from the sources that the package brings.
//
// `--force` builds without asking; so does `npm install --build-from-source`.
import { existsSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { isAddonFresh, root } from "./addon-files.mjs";

const isForced = process.argv.includes("--force") || process.env.npm_config_build_from_source;
const isCheckout = existsSync(join(root, "tsconfig.json"));

if (isForced || !(isCheckout ? isAddonFresh() : hasAddon())) {
  const { buildAddon } = await import("./build-addon.mjs");
  buildAddon();
  // What make keeps for the next build is of use in a checkout only, and larger than the addon.
  if (!isCheckout) {
    for (const folder of ["obj.target", ".deps"]) {
      rmSync(join(root, "build/Release", folder), { recursive: true, force: true });
    }
  }
}

/** Whether node-gyp-build finds an addon for this platform, and it loads. */
function hasAddon() {
  const require = createRequire(import.meta.url);
  try {
    require("node-gyp-build")(root);
    return true;
  } catch {
    return false;
  }
}
