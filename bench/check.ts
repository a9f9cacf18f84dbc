// node dist-bench/bench/check.js [--device cuda:0] [filter...]
//
// The op tests without a test runner, for a machine that has only Node.js and the built addons: every
// set of every case against its float64 reference, in every float type. Exits 1 if one is off.
import { parseArgs } from "node:util";
import { cudaAddon } from "../lib/native/cuda.ts";
import { deviceInfo } from "../lib/tensor/device.ts";
import { label } from "../test/cases/case.ts";
import { CASES } from "../test/cases/index.ts";
import { compareSet, variantName, variants } from "../test/helpers/run-op.ts";
import { isWanted } from "./harness.ts";

const { values, positionals: filters } = parseArgs({
  allowPositionals: true,
  options: { device: { type: "string", default: "cuda:0" } },
});

const { device } = values;
cudaAddon();
const { name, detail } = deviceInfo(device);
process.stdout.write(`${device}: ${name}, ${detail}\n`);
let [passed, failed] = [0, 0];
for (const op of CASES.filter(({ op }) => isWanted(filters, op))) {
  const wrong: string[] = [];
  for (const variant of variants(op)) {
    for (const dims of op.sets) {
      let problem: string | undefined;
      try {
        problem = compareSet(op, dims, { device, ...variant });
      } catch (error) {
        problem = String(error);
      }
      if (problem === undefined) passed++;
      else wrong.push(`${variantName(variant)} ${label(dims)}: ${problem}`);
    }
  }
  failed += wrong.length;
  if (wrong.length > 0) {
    process.stdout.write(`${op.op}: ${wrong.length} off\n  ${wrong.slice(0, 4).join("\n  ")}\n`);
  }
}
process.stdout.write(`${passed} sets passed, ${failed} off\n`);
process.exitCode = failed > 0 ? 1 : 0;
