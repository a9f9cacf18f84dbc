// A copy of what the addon is built from, in a folder of its own: builds with other compilers or
// flags (prebuilt binaries, sanitizers) go there, and build/ of the checkout stays as it is.
import { cpSync, existsSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { filesBelow, nativeFolders, root } from "./addon-files.mjs";

/**
 * Copies sources, their times included so that make compiles only what changed, and removes what is
 * no longer there. node_modules is a link to the checkout's.
 */
export function copyAddonTree(folder) {
  const single = ["binding.gyp", "package.json", "tsconfig.json"].map((name) => join(root, name));
  const sources = [...nativeFolders, join(root, "scripts")].flatMap(filesBelow);
  const expected = new Set([...single, ...sources].map((path) => relative(root, path)));
  for (const name of expected) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    cpSync(join(root, name), join(folder, name), { preserveTimestamps: true });
  }
  for (const path of [join(folder, "native"), join(folder, "scripts")].flatMap(filesBelow)) {
    if (!expected.has(relative(folder, path))) rmSync(path);
  }
  const modules = join(folder, "node_modules");
  if (!existsSync(modules)) symlinkSync(join(root, "node_modules"), modules, "junction");
}
