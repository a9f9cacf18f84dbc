// node dist-bench/bench/check-calibration.js [--device cuda:0] [filter...]
//
// The tests of calibration, decoding and passes on a GPU without a test runner, for a machine that has
// only Node.js and the built addons. A filter is part of a check's name. Exits 1 if one is off.
import { parseArgs } from "node:util";
import { cudaAddon } from "../lib/native/cuda.ts";
import { deviceInfo } from "../lib/tensor/device.ts";
import { CACHE_CHECKS } from "../test/helpers/cuda-cache-checks.ts";
import { CUDA_CHECKS } from "../test/helpers/cuda-checks.ts";
import { DECODE_CHECKS } from "../test/helpers/cuda-decode-checks.ts";
import { PASS_CHECKS } from "../test/helpers/cuda-pass-checks.ts";
import { isWanted } from "./harness.ts";

const { values, positionals: filters } = parseArgs({
  allowPositionals: true,
  options: { device: { type: "string", default: "cuda:0" } },
});

cudaAddon();
const device = values.device as `cuda:${number}`;
const { name, detail } = deviceInfo(device);
process.stdout.write(`${device}: ${name}, ${detail}\n`);
let failed = 0;
const checks = [...PASS_CHECKS, ...CUDA_CHECKS, ...DECODE_CHECKS, ...CACHE_CHECKS];
for (const check of checks.filter((one) => isWanted(filters, one.name))) {
  const began = performance.now();
  let outcome: string;
  try {
    const { ok, text } = await check.run(device);
    outcome = `${ok ? "ok " : "OFF"}  ${check.name}: ${text}`;
    if (!ok) failed++;
  } catch (error) {
    outcome = `OFF  ${check.name}: ${error instanceof Error ? error.message : String(error)}`;
    failed++;
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  process.stdout.write(`${outcome}  (${seconds} s)\n`);
}
process.stdout.write(failed > 0 ? `${failed} off\n` : "all as they should be\n");
process.exitCode = failed > 0 ? 1 : 0;
