// npm run prebuild:cuda [-- --CDCMAKE_CUDA_ARCHITECTURES=90a]: the CUDA addon as a package of its own,
// native/cuda (@aq-native/cuda). The binary lands in its prebuilds/, where node-gyp-build finds it in a
// checkout, and below node_modules once the package is installed beside aq-native. It is linked to
// CUDA's static runtime: whoever loads it needs the driver at most. Options go to cmake-js.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { root } from "./addon-files.mjs";

if (isHookOfBuild()) process.exit(0);

const target = `${process.platform}-${process.arch}`;
if (process.platform !== "linux") fail(`the CUDA addon is built on Linux, and this is ${target}`);

const packageFolder = join(root, "native/cuda");
checkVersion();
const buildFolder = join(root, "build/cuda-prebuild");
run(process.execPath, [
  join(root, "node_modules/cmake-js/bin/cmake-js"),
  ...["compile", "-O", buildFolder, ...process.argv.slice(2)],
]);
const folder = join(packageFolder, "prebuilds", target);
const file = join(folder, "aq-native-cuda.glibc.node");
mkdirSync(folder, { recursive: true });
copyFileSync(join(buildFolder, "Release/aq_cuda.node"), file);
run(process.env.PREBUILD_STRIP_BIN ?? "strip", ["-s", file]);
check();

/**
 * npm takes this script for a hook and runs it before `build:cuda`, because of its name. npm's own
 * process says what it was asked for.
 */
function isHookOfBuild() {
  let pid = process.ppid;
  for (let up = 0; up < 3 && pid > 1; up++) {
    let title, parent;
    try {
      title = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
      parent = /^PPid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    } catch {
      return false;
    }
    if (/\brun(-script)?\b.*\sbuild:cuda\b/.test(title) && !/prebuild:cuda/.test(title))
      return true;
    pid = Number(parent);
  }
  return false;
}

/** Both packages carry one version: the interface between them has no other. */
function checkVersion() {
  const [own, main] = [join(packageFolder, "package.json"), join(root, "package.json")].map(
    (manifest) => JSON.parse(readFileSync(manifest, "utf8")).version,
  );
  if (own !== main) fail(`native/cuda/package.json has version ${own}, and package.json ${main}`);
}

/** The binary loads here without CUDA's libraries, and offers the interface. */
function check() {
  const source =
    "const {abi, backend} = require(process.argv[1]); if (!abi || !backend) process.exit(1)";
  const environment = { ...process.env, LD_LIBRARY_PATH: "" };
  const loaded = spawnSync(process.execPath, ["-e", source, file], { env: environment });
  if (loaded.status !== 0) fail(`${file} does not load: ${loaded.stderr}`);
  const size = (statSync(file).size / 1e6).toFixed(1);
  console.log(`${relative(root, file)}: ${size} MB`);
  console.log("pack it with: npm pack ./native/cuda");
}

function run(program, args) {
  if (args[0].endsWith("cmake-js") && !existsSync(args[0]))
    fail("cmake-js is not installed: npm ci");
  const { status, signal, error } = spawnSync(program, args, { cwd: root, stdio: "inherit" });
  if (status !== 0) fail(`${program} ended with ${status ?? signal ?? error?.message}`);
}

function fail(message) {
  console.error(`aq-native: ${message}.`);
  process.exit(1);
}
