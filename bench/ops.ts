// Every op at the sizes of real models: time, bytes and operations per second, and the share of what
// limits it, measured in the same run: the engine's own copy for ops bound by memory, its own product
// for ops bound by arithmetic. More than 100 % is possible: an op that writes in place spares the
// reads that a copy's writes cost, and a small product fits the caches better than 1024 x 1024. On a
// GPU a row goes through several sets of operands, so that its L2 holds none of them.
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { type Dims, label, type OpCase } from "../test/cases/case.ts";
import { CASES } from "../test/cases/index.ts";
import { Draw } from "../test/helpers/random.ts";
import { toTensor } from "../test/helpers/run-op.ts";
import { type Bench, isWanted, printRow, type Timing, time, timeQueue } from "./harness.ts";
import { sgemm } from "./sgemm.ts";

const F32_BYTES = 4;
/** How long a limit is measured. */
const LIMIT_SECONDS = 0.08;
const WIDTHS = [-18, -62, 10, 8, 9, 12];

/** Distinct operands that a GPU's row goes through: several times its L2. */
const ROTATED_BYTES = 300e6;
const MOST_SETS = 8;

/** Times calls on whatever device: one call after another on the CPU, queues of them elsewhere. */
function timeCalls(bodies: readonly (() => void)[], device: string, seconds?: number): Timing {
  const [first] = bodies;
  if (device === "cpu" && first) return time(first, seconds);
  return scope(() => {
    const mark = Tensor.empty([1], "f32", device);
    invoke("fill", [mark], { value: 0 });
    return timeQueue(bodies, () => void mark.item());
  });
}

/** Bytes per second of the engine's copy, moving as many bytes; half are read, half written. */
function copyRate(bytes: number, device: string): number {
  const most = device === "cpu" ? bytes : Math.max(bytes, ROTATED_BYTES);
  const count = Math.ceil(most / 2 / F32_BYTES);
  return scope(() => {
    const [x, out] = [0, 1].map(() => Tensor.empty([count], "f32", device)) as [Tensor, Tensor];
    invoke("fill", [x], { value: 1 });
    const params = { dtype: dtypeCode("f32") };
    const copy = () => scope(() => void invoke("cast", [x], params, [out]));
    return (2 * count * F32_BYTES) / timeCalls([copy], device, LIMIT_SECONDS).median;
  });
}

/** Operations per second of our product: large enough on a GPU that rounding operands is little of it. */
function productRate(device: string): number {
  const n = device === "cpu" ? 1024 : 8192;
  const { run, dispose } = sgemm(n, device);
  const { median } = timeCalls([run], device, LIMIT_SECONDS);
  dispose();
  return (2 * n ** 3) / median;
}

function cloned(tensor: Tensor): Tensor {
  const [copy] = invoke("cast", [tensor], { dtype: dtypeCode(tensor.dtype) });
  return copy as Tensor;
}

function timeSet(op: OpCase, dims: Dims, device: string): Timing {
  return scope(() => {
    const call = op.make(new Draw(1, "f32", true), dims);
    const place = { device, dtype: "f32" } as const;
    const first = call.inputs.map((value) => value && toTensor(value, place));
    const bytes = op.bytes(dims, F32_BYTES);
    const sets = device === "cpu" ? 1 : Math.min(MOST_SETS, Math.ceil(ROTATED_BYTES / bytes));
    const bodies = Array.from({ length: sets }, (_, i) => {
      const inputs = i === 0 ? first : first.map((tensor) => tensor && cloned(tensor));
      // Outputs are made once: fresh pages would be timed otherwise.
      const outs =
        call.outs?.map((value) => toTensor(value, place)) ?? invoke(op.op, inputs, call.params);
      return () => scope(() => void invoke(op.op, inputs, call.params, outs));
    });
    return timeCalls(bodies, device);
  });
}

const gpuLimits = new Map<string, number>();
/** The rate that an op of these bytes could reach. */
function limitOf({ bound }: OpCase, bytes: number, device: string): number {
  const measure = (): number =>
    bound === "memory" ? copyRate(bytes, device) : productRate(device);
  // Measured beside each row on the CPU: on a shared machine it changes from minute to minute.
  if (device === "cpu") return measure();
  const known = gpuLimits.get(bound) ?? measure();
  gpuLimits.set(bound, known);
  return known;
}

/** Prints a row for every wanted op and size. */
export function benchOps({ device, filters, save }: Bench): void {
  const cases = CASES.filter(({ op }) => isWanted(filters, op));
  if (cases.length === 0) return;
  printRow(["op", "sizes", "ms", "GB/s", "GFLOP/s", "of limit"], WIDTHS);
  for (const op of cases) {
    for (const dims of op.real) {
      const { median, best, calls } = timeSet(op, dims, device);
      const [bytes, flops] = [op.bytes(dims, F32_BYTES), op.flops(dims)];
      const limit = limitOf(op, bytes, device);
      const share = (op.bound === "memory" ? bytes : flops) / median / limit;
      printRow(
        [
          op.op,
          label(dims),
          (median * 1e3).toFixed(3),
          (bytes / median / 1e9).toFixed(1),
          flops ? (flops / median / 1e9).toFixed(1) : "",
          `${(100 * share).toFixed(0)}% ${op.bound === "memory" ? "copy " : "product"}`,
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
