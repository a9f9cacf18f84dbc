// npm run bench [-- filter...] [--device cpu|cuda:0] [--precision bf16] [--threads N]
//                         [--save FILE]
//
// Prints a row for every op case at real sizes, then a whole linear of a training step, packed matrices as
// decoding reads them, and our SGEMM against OpenBLAS. A filter is part of a row's name: "fake_quant",
// "attention", "linear", "packed", "sgemm". A saved FILE is in bench/results, one JSON object a line.
import { loadavg } from "node:os";
import { parseArgs } from "node:util";
import { cudaAddon } from "../lib/native/cuda.ts";
import { deviceInfo, setThreads } from "../lib/tensor/device.ts";
import { setPrecision } from "../lib/tensor/precision.ts";
import type { PrecisionName } from "../lib/types.ts";
import { isWanted, saver } from "./harness.ts";
import { benchLinear, LINEAR_ROW } from "./linear.ts";
import { benchOps, opRows } from "./ops.ts";
import { benchPacked, PACKED_ROW } from "./packed.ts";
import { benchSgemm } from "./sgemm.ts";

const { values, positionals: filters } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: "string", default: "cpu" },
    threads: { type: "string" },
    precision: { type: "string", default: "bf16" },
    save: { type: "string" },
  },
});

const rows = [...opRows(), LINEAR_ROW, PACKED_ROW, "sgemm"];
if (!rows.some((row) => isWanted(filters, row))) {
  throw new Error(`no row contains ${filters.join(" or ")}; the rows are ${rows.join(", ")}`);
}
const { device, save } = values;
if (device !== "cpu") {
  cudaAddon();
  setPrecision(device, values.precision as PrecisionName);
}
if (values.threads !== undefined) setThreads(Number(values.threads));
const { name, detail } = deviceInfo(device);
const load = (loadavg()[0] ?? 0).toFixed(1);
process.stdout.write(`${device}: ${name}, ${detail}; load of the machine ${load}\n\n`);
const bench = { device, filters, save: saver(save, device) };
benchOps(bench);
await benchLinear(bench);
benchPacked(bench);
await benchSgemm(bench);
