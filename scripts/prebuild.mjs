// npm run prebuild [-- PLATFORM-ARCH ...]: prebuilt addons in prebuilds/, which npm pack carries and
// node-gyp-build finds, so that installing needs no compiler. Without arguments: this machine's, and on
// x64 Linux also linux-arm64, with Debian's cross compiler.
//
// Every target is built in a temporary copy; build/ of the checkout stays as it is. A Linux binary needs
// the glibc of the system it was built on or a later one, so releases are built on an old one, and
// AQ_MAX_GLIBC makes sure of it.
import { spawnSync } from "node:child_process";
import {
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { copyAddonTree } from "./addon-copy.mjs";
import { root } from "./addon-files.mjs";
import { headers, isOnPath } from "./build-addon.mjs";

const host = `${process.platform}-${process.arch}`;

/** Cross compilers: prefix of their programs, and the Debian packages that bring them. */
const cross = {
  "linux-arm64": { prefix: "aarch64-linux-gnu-", packages: "g++-aarch64-linux-gnu" },
  "linux-x64": { prefix: "x86_64-linux-gnu-", packages: "g++-x86-64-linux-gnu" },
};

/** e_machine of an ELF file. */
const machines = { "linux-x64": 62, "linux-arm64": 183 };

const named = process.argv.slice(2);
const targets = named.length > 0 ? named : host === "linux-x64" ? [host, "linux-arm64"] : [host];
for (const target of targets) checkTools(target);
for (const target of targets) build(target);

function build(target) {
  const copy = mkdtempSync(join(tmpdir(), "aq-native-prebuild-"));
  try {
    copyAddonTree(copy);
    const [platform, arch] = target.split("-");
    const prebuildify = join(root, "node_modules/prebuildify/bin.js");
    const options = ["--napi", "--strip", `--target=${process.version}`];
    // On Linux the C library shows in the name: a system with musl then builds from source.
    if (platform === "linux") options.push("--tag-libc");
    const run = spawnSync(
      process.execPath,
      [prebuildify, ...options, `--platform=${platform}`, `--arch=${arch}`, `--out=${root}`],
      { cwd: copy, stdio: "inherit", env: { ...process.env, ...environment(target) } },
    );
    if (run.status !== 0) fail(`prebuildify ended with ${run.status ?? run.signal} for ${target}`);
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
  const folder = join(root, "prebuilds", target);
  for (const name of readdirSync(folder)) check(join(folder, name), target);
}

function environment(target) {
  const environment = { JOBS: process.env.JOBS ?? "max", npm_config_loglevel: "error" };
  // prebuildify hands no options on to node-gyp, but node-gyp reads them from here too.
  const [nodedir] = headers();
  if (nodedir) environment.npm_config_nodedir = nodedir.replace("--nodedir=", "");
  if (target === host) return environment;
  const { prefix } = cross[target];
  return {
    ...environment,
    CC: `${prefix}gcc`,
    CXX: `${prefix}g++`,
    AR: `${prefix}ar`,
    LINK: `${prefix}g++`,
    PREBUILD_STRIP_BIN: `${prefix}strip`,
  };
}

/** A binary that is for this machine must load, one for another must be for that one. */
function check(file, target) {
  if (target === host) {
    const run = spawnSync(process.execPath, ["-e", "require(process.argv[1]).ops()", file]);
    if (run.status !== 0) fail(`${file} does not load: ${run.stderr}`);
  } else {
    const machine = Buffer.alloc(2);
    readSync(openSync(file), machine, 0, 2, 18);
    if (machine.readUInt16LE() !== machines[target]) fail(`${file} is not for ${target}`);
  }
  const size = (statSync(file).size / 1e6).toFixed(2);
  if (!target.startsWith("linux")) return console.log(`${relative(root, file)}: ${size} MB`);
  const needed = newestGlibc(file);
  console.log(`${relative(root, file)}: ${size} MB, needs glibc ${needed.join(".")}`);
  const limit = process.env.AQ_MAX_GLIBC;
  if (!limit) return;
  const [major, minor] = limit.split(".").map(Number);
  if (needed[0] > major || (needed[0] === major && needed[1] > minor)) {
    fail(`${file} needs glibc ${needed.join(".")}, expected ${limit} at most (AQ_MAX_GLIBC)`);
  }
}

/** The newest version among the names of glibc's symbol versions, which stand in the file as text. */
function newestGlibc(file) {
  const found = readFileSync(file, "latin1").matchAll(/GLIBC_(\d+)\.(\d+)/g);
  const versions = [...found].map(([, major, minor]) => [Number(major), Number(minor)]);
  return versions.sort((a, b) => a[0] - b[0] || a[1] - b[1]).at(-1) ?? [0, 0];
}

function checkTools(target) {
  if (target === host) return;
  const tools = cross[target];
  if (!tools || process.platform !== "linux") {
    fail(
      `${target} cannot be built on ${host}; build it on a machine of its own (CONTRIBUTING.md)`,
    );
  }
  if (!isOnPath(`${tools.prefix}g++`)) {
    fail(
      `${tools.prefix}g++, which ${target} is built with, is not installed; on Debian or Ubuntu: ` +
        `apt-get install ${tools.packages}. For this machine alone: npm run prebuild -- ${host}`,
    );
  }
}

function fail(message) {
  console.error(`aq-native: ${message}.`);
  process.exit(1);
}
