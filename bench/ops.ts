// Every op at the sizes of real models: time, bytes and operations per second, and the share of what
// limits it, measured in the same run: the engine's own copy for ops bound by memory, its own SGEMM
// for ops bound by arithmetic.
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { type Dims, label, type OpCase } from "../test/cases/case.ts";
import { CASES } from "../test/cases/index.ts";
import { Draw } from "../test/helpers/random.ts";
import { toTensor } from "../test/helpers/run-op.ts";
import { type Bench, isWanted, printRow, type Timing, time } from "./harness.ts";
import { sgemm } from "./sgemm.ts";

const F32_BYTES = 4;
const WIDTHS = [-18, -62, 10, 8, 9, 12];

/** Bytes per second of a copy that moves about as many bytes; a size is measured once. */
class CopyRate {
  readonly #device: string;
  readonly #rates = new Map<number, number>();

  constructor(device: string) {
    this.#device = device;
  }

  at(bytes: number): number {
    // Half of the bytes are read and half are written.
    const count = 2 ** Math.round(Math.log2(Math.max(bytes, 4096) / 2 / F32_BYTES));
    const known = this.#rates.get(count);
    if (known !== undefined) return known;
    const rate = scope(() => {
      const x = Tensor.empty([count], "f32", this.#device);
      invoke("fill", [x], { value: 1 });
      const out = Tensor.empty([count], "f32", this.#device);
      const params = { dtype: dtypeCode("f32") };
      const copy = () => scope(() => void invoke("cast", [x], params, [out]));
      return (2 * count * F32_BYTES) / time(copy, 0.2).median;
    });
    this.#rates.set(count, rate);
    return rate;
  }
}

function timeSet(op: OpCase, dims: Dims, device: string): Timing {
  return scope(() => {
    const call = op.make(new Draw(1, "f32", true), dims);
    const place = { device, dtype: "f32" } as const;
    const inputs = call.inputs.map((value) => value && toTensor(value, place));
    // Outputs are made once: fresh pages would be timed otherwise.
    const outs =
      call.outs?.map((value) => toTensor(value, place)) ?? invoke(op.op, inputs, call.params);
    return time(() => scope(() => void invoke(op.op, inputs, call.params, outs)));
  });
}

/** Prints a row for every wanted op and size. */
export function benchOps({ device, filters, save }: Bench): void {
  const cases = CASES.filter(({ op }) => isWanted(filters, op));
  if (cases.length === 0) return;
  const copyRate = new CopyRate(device);
  const product = sgemm(1024, device);
  const sgemmRate = (2 * 1024 ** 3) / time(product.run).median;
  product.dispose();
  printRow(["op", "sizes", "ms", "GB/s", "GFLOP/s", "of limit"], WIDTHS);
  for (const op of cases) {
    for (const dims of op.real) {
      const { median, best, calls } = timeSet(op, dims, device);
      const [bytes, flops] = [op.bytes(dims, F32_BYTES), op.flops(dims)];
      const limit = op.bound === "memory" ? copyRate.at(bytes) : sgemmRate;
      const share = (op.bound === "memory" ? bytes : flops) / median / limit;
      printRow(
        [
          op.op,
          label(dims),
          (median * 1e3).toFixed(3),
          (bytes / median / 1e9).toFixed(1),
          flops ? (flops / median / 1e9).toFixed(1) : "",
          `${(100 * share).toFixed(0)}% ${op.bound === "memory" ? "copy " : "sgemm"}`,
        ],
        WIDTHS,
      );
      save({
        bench: "op",
        op: op.op,
        dims,
        median,
        best,
        calls,
        bytes,
        flops,
        bound: op.bound,
        share,
      });
    }
  }
}

/** Names of the rows, for telling a filter that matches nothing. */
export function opRows(): readonly string[] {
  return CASES.map(({ op }) => op);
}
