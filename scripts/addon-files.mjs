// The files that the CPU addon is made of, and the question whether a built one is older than they.
// Run as a program it prints the C++ sources for binding.gyp, so that a new file needs no change
// there.
import { readdirSync, statSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

/** Root of the package. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** The addon in a folder, where node-gyp puts it and node-gyp-build looks first. */
export const addonFile = "build/Release/aq_native.node";
const builtAddon = join(root, addonFile);

/** The folders of native/ that the addon is made of. */
export const nativeFolders = ["abi", "core", "cpu", "napi"].map((name) =>
  join(root, "native", name),
);

/** All files below a folder, as absolute paths in a fixed order; none if it does not exist. */
export function filesBelow(folder) {
  let names;
  try {
    names = readdirSync(folder, { recursive: true, withFileTypes: true });
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
  return names
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** Milliseconds of the last change, or 0 for a file that does not exist. */
export function changedAt(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/** Whether the built addon is at least as new as everything that it is made from. */
export function isAddonFresh() {
  const builtAt = changedAt(builtAddon);
  if (builtAt === 0) return false;
  const inputs = [
    join(root, "binding.gyp"),
    join(root, "scripts/addon-files.mjs"),
    ...nativeFolders.flatMap(filesBelow),
  ];
  return inputs.every((path) => changedAt(path) <= builtAt);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const sources = nativeFolders.flatMap(filesBelow).filter((path) => path.endsWith(".cc"));
  for (const path of sources) console.log(relative(root, path).replaceAll(sep, "/"));
}
