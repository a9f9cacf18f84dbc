// Formats the C++ and CUDA sources with clang-format; with --check only says which differ.
import { spawnSync } from "node:child_process";
import { join, relative } from "node:path";
import { filesBelow, root } from "./addon-files.mjs";

// Tables of one struct per line, which is how they are read.
const exempt = new Set(["native/abi/params.h", "native/abi/operand_params.h"]);

const files = filesBelow(join(root, "native"))
  .map((path) => relative(root, path))
  .filter((path) => /\.(h|cc|cu|cuh)$/.test(path) && !exempt.has(path))
  .filter((path) => !path.includes("/build/"));
const mode = process.argv.includes("--check") ? ["--dry-run", "-Werror"] : ["-i"];
const program = process.env.CLANG_FORMAT ?? "clang-format";

const run = spawnSync(program, [...mode, ...files], { cwd: root, stdio: "inherit" });
if (run.error) {
  console.error(
    `${program} could not be started (${run.error.message}). Install version 14 or later ` +
      "(apt-get install clang-format) or name it in CLANG_FORMAT.",
  );
}
process.exit(run.status ?? 1);
