// npm run test:asan: the test suite on an addon built with AddressSanitizer and
// UndefinedBehaviorSanitizer. What is behind the `--` goes to vitest: npm run test:asan -- -t norm.
//
// The addon lies in build/asan and is found through AQ_NATIVE_PREBUILD (node-gyp-build's variable), by
// child processes and workers too; the checkout's own addon is not touched. Linux with g++ only.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { copyAddonTree } from "./addon-copy.mjs";
import { root } from "./addon-files.mjs";
import { buildAddon } from "./build-addon.mjs";

const folder = join(root, "build/asan");

/** Test files that measure what a sanitizer changes. */
const excluded = {
  "test/memory.test.ts": "bounds the resident set, which shadow memory and quarantine enlarge",
};

const flags = [
  "-fsanitize=address,undefined",
  // Null and out-of-object accesses are what AddressSanitizer sees anyway.
  "-fno-sanitize=null,object-size",
  "-fno-sanitize-recover=all",
  "-fno-omit-frame-pointer",
  "-g1",
  "-O2",
  // The optimizer warns about code that the sanitizers put in.
  "-Wno-error",
].join(" ");

const options = {
  ASAN_OPTIONS: [
    // V8 and the threads of the engine keep their memory until the process has ended.
    "detect_leaks=0",
    // Tests ask for more memory than there is and expect an error.
    "allocator_may_return_null=1",
    "quarantine_size_mb=64",
  ].join(":"),
  UBSAN_OPTIONS: "print_stacktrace=1",
};

if (process.platform !== "linux") {
  console.error(
    "aq-native: test:asan preloads the sanitizer's runtime, which is done on Linux only.",
  );
  process.exit(1);
}

const compiler = process.env.CXX ?? "g++";
const runtime = runtimeFile("libasan.so");
const libstdcxx = runtimeFile("libstdc++.so.6");
copyAddonTree(folder);
buildAddon(folder, { CXXFLAGS: flags, LDFLAGS: "-fsanitize=address,undefined" });

for (const [file, reason] of Object.entries(excluded)) console.log(`left out: ${file} (${reason})`);
const vitest = join(root, "node_modules/vitest/vitest.mjs");
const excludes = Object.keys(excluded).map((file) => `--exclude=${file}`);
const run = spawnSync(
  process.execPath,
  [vitest, "run", "--test-timeout=600000", ...excludes, ...process.argv.slice(2)],
  {
    cwd: root,
    stdio: "inherit",
    env: {
      ...process.env,
      ...options,
      AQ_NATIVE_PREBUILD: folder,
      // The runtime must come first, and finds the C++ library's functions only if that is there.
      LD_PRELOAD: `${runtime} ${libstdcxx}`,
    },
  },
);
process.exit(run.status ?? 1);

/** Where the compiler keeps a library; ends the process when it has none. */
function runtimeFile(name) {
  const { stdout } = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" });
  const file = stdout?.trim();
  if (file?.startsWith("/")) return file;
  console.error(
    `aq-native: ${compiler} has no ${name}; install g++ (apt-get install g++), or name a GCC in CXX.`,
  );
  return process.exit(1);
}
