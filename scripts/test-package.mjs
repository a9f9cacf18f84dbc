// npm run test:package: packs the package, installs the tarball in an empty folder where no compiler,
// make or Python is on the PATH, and quantizes the fixture there with tiny settings. Prebuilt addons
// come from npm run prebuild; dependencies from the registry that npm is set to. Where npm run
// prebuild:cuda has filled its folder, the package of the CUDA addon is installed beside it, and on a
// machine with a GPU the fixture is quantized there, without CUDA's libraries or tools on any path.
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { root } from "./addon-files.mjs";

const MAX_BYTES = 15e6;
const isWindows = process.platform === "win32";

const folder = mkdtempSync(join(tmpdir(), "aq-native-package-"));
try {
  const tarballs = [pack(), ...packCuda()];
  install(tarballs);
  if (tarballs.length > 1) checkCuda();
  quantize();
} finally {
  rmSync(folder, { recursive: true, force: true });
}

function pack() {
  const { stdout } = run("npm", ["pack", "--json", `--pack-destination=${folder}`], { cwd: root });
  // The prepare step may print before the JSON.
  const [{ filename, size, files }] = JSON.parse(stdout.slice(stdout.lastIndexOf("\n[") + 1));
  const prebuilds = files.filter(({ path }) => path.startsWith("prebuilds/"));
  console.log(`${filename}: ${(size / 1e6).toFixed(2)} MB, ${files.length} files, with`);
  for (const { path } of prebuilds) console.log(`  ${path}`);
  if (size > MAX_BYTES) fail(`the tarball has ${size} bytes, expected ${MAX_BYTES} at most`);
  if (prebuilds.length === 0) fail("the tarball has no prebuilt addon; run npm run prebuild first");
  return join(folder, filename);
}

/** The tarball of the CUDA addon's package, if there is a binary in it. */
function packCuda() {
  const place = join(root, "native/cuda");
  if (!existsSync(join(place, "prebuilds"))) return [];
  const args = ["pack", "--json", `--pack-destination=${folder}`, place];
  const [{ filename, size }] = JSON.parse(run("npm", args, { cwd: root }).stdout);
  console.log(`${filename}: ${(size / 1e6).toFixed(2)} MB`);
  return [join(folder, filename)];
}

/** doctor finds the addon of the package that was just installed. */
function checkCuda() {
  const { stdout } = run("npx", ["--no-install", "aq-native", "doctor", "--json"], inApp());
  const { checks } = JSON.parse(stdout);
  const { status, text, facts } = checks.find(({ name }) => name === "CUDA addon");
  const isInstalled = facts.path?.startsWith(join(folder, "app/node_modules"));
  if (!["ok", "note"].includes(status) || !isInstalled)
    fail(`the CUDA addon is ${status}: ${text}`);
  console.log(`CUDA addon: ${text}`);
}

/** Where the packages are installed, and nothing of CUDA but the driver can be found. */
function inApp() {
  const env = bareEnvironment();
  delete env.LD_LIBRARY_PATH;
  return { cwd: join(folder, "app"), env };
}

function install(tarballs) {
  const app = join(folder, "app");
  mkdirSync(app);
  writeFileSync(join(app, "package.json"), "{}");
  run("npm", ["install", "--foreground-scripts", ...tarballs], {
    cwd: app,
    env: bareEnvironment(),
  });
  const built = join(app, "node_modules/aq-native/build");
  if (existsSync(built))
    fail(`${built} is there: the addon was built and not taken from prebuilds/`);
}

function quantize() {
  const model = join(root, "test/fixtures/llama-gqa-4m");
  const tiny = ["--nsamples", "2", "--seqlen", "64", "--epochs", "1"];
  const args = ["aq-native", "quantize", "--model", model, "--wbits", "4", "--abits", "4", ...tiny];
  const { stderr } = run("npx", ["--no-install", ...args, "--out", "out"], inApp());
  const device = /device (cuda:\d+ .*)/.exec(stderr)?.[1] ?? "the CPU";
  console.log(`quantized on ${device}`);
  const weights = join(folder, "app/out/model.safetensors");
  console.log(`quantized without a compiler: ${statSync(weights).size} bytes of weights`);
}

/** The environment with a PATH on which there is Node.js, npm and a shell, and nothing to build with. */
function bareEnvironment() {
  const { npm_config_build_from_source: _, ...rest } = process.env;
  // npm, when it runs this script, names itself and its folders in variables that would lead back.
  const kept = Object.entries(rest).filter(
    ([name]) => !/^(npm_(lifecycle|package)|init_cwd)/i.test(name),
  );
  const env = Object.fromEntries(kept.filter(([name]) => name.toLowerCase() !== "path"));
  env.PATH = isWindows
    ? [dirname(process.execPath), join(process.env.SystemRoot ?? "C:\\Windows", "System32")].join(
        delimiter,
      )
    : bareFolder();
  const check = ["g++", "c++", "clang++", "make", "python3", "python"];
  const there = check.filter((name) => existsSync(join(env.PATH, name)));
  if (there.length > 0) fail(`${there.join(", ")} is on the PATH that should be bare`);
  return env;
}

function bareFolder() {
  const bin = join(folder, "bin");
  if (existsSync(bin)) return bin;
  mkdirSync(bin);
  for (const name of ["node", "npm", "npx", "sh", "env"]) {
    const found = (process.env.PATH ?? "")
      .split(delimiter)
      .map((place) => join(place, name))
      .find((file) => existsSync(file));
    if (found) symlinkSync(found, join(bin, name));
  }
  return bin;
}

function run(program, args, options) {
  const result = spawnSync(program, args, { encoding: "utf8", shell: isWindows, ...options });
  if (result.status !== 0) {
    fail(
      `${program} ${args[0]} ended with ${result.status ?? result.error?.message}\n${result.stdout}${result.stderr}`,
    );
  }
  return result;
}

function fail(message) {
  console.error(`aq-native: ${message}`);
  rmSync(folder, { recursive: true, force: true });
  process.exit(1);
}
