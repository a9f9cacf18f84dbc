// Passes that may run beside each other on a GPU (native/cuda/passes.h) against the same passes one by one. No
// test runner in here: the same checks run on machines that have Node.js and the built addons alone
// (bench/check-calibration.ts).
import { FLOAT4_FORMATS } from "../../lib/autograd/float4.ts";
import { synchronize } from "../../lib/tensor/device.ts";
import { type DType, dtypeCode } from "../../lib/tensor/dtype.ts";
import { invoke, invokeOne } from "../../lib/tensor/invoke.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import type { CudaCheck } from "./cuda-checks.ts";
import { Draw } from "./random.ts";
import { toTensor } from "./run-op.ts";

/** Large enough that a pass still reads when the next one is enqueued, small enough to be kept and reused. */
const [ROWS, COLUMNS] = [1536, 4096];
const GRID = { bits: 4, group: 0, symmetric: 0, floor: 1e-5, rule: 0 };
const NVFP4 = { format: FLOAT4_FORMATS.nvfp4 };
const PROGRAMS = 24;
const STEPS = 40;

/** What passes work on: matrices of one size, and their quantizers. */
interface Matrix {
  readonly values: Tensor;
  /** As quant_operand wrote it, with its grid. */
  readonly grid?: readonly [scale: Tensor, zero: Tensor];
  /** Scales of its groups, as fp4_operand wrote them. */
  readonly scales?: Tensor;
}

const tensorsOf = ({ values, grid, scales }: Matrix): readonly Tensor[] => [
  values,
  ...(grid ?? []),
  ...(scales ? [scales] : []),
];

/** A seeded choice of 0 .. count - 1. */
function chooser(seed: number): (count: number) => number {
  let state = 2 * seed + 1;
  return (count) => {
    state = Math.imul(state, 747796405) + 2891336453;
    return ((state >>> 9) ^ (state >>> 21)) % count;
  };
}

/** Runs a program's passes and hands every matrix that it makes to `take` when it is released. */
class Program {
  readonly #choose: (count: number) => number;
  readonly #clip: Tensor;
  readonly #live: Matrix[];

  constructor(seed: number, starts: readonly Tensor[], clip: Tensor) {
    this.#choose = chooser(seed);
    this.#clip = clip;
    this.#live = starts.map((x) => ({
      values: invokeOne("cast", [x], { dtype: dtypeCode("bf16") }),
    }));
  }

  /** One pass over a matrix that was made long ago, or just now; what is not needed is released. */
  step(): void {
    const live = this.#live;
    const from = live[
      this.#choose(2) === 0 ? live.length - 1 : this.#choose(live.length)
    ] as Matrix;
    live.push(this.#pass(from, live[this.#choose(live.length)] as Matrix));
    // The last block that was released is the next one that is handed out.
    while (live.length > 5) this.#release(this.#choose(live.length - 1));
  }

  /** The bytes of what is left. */
  finish(): Uint8Array[] {
    const all = this.#live.flatMap(tensorsOf).map((tensor) => {
      const { buffer, byteOffset, byteLength } = tensor.read();
      return new Uint8Array(buffer, byteOffset, byteLength);
    });
    while (this.#live.length > 0) this.#release(0);
    return all;
  }

  #release(index: number): void {
    for (const matrix of this.#live.splice(index, 1)) {
      for (const tensor of tensorsOf(matrix)) tensor.dispose();
    }
  }

  #pass(x: Matrix, g: Matrix): Matrix {
    const { values, grid, scales } = x;
    if (grid && this.#choose(2) === 0) {
      const inputs = [values, ...grid, g.values, this.#clip];
      return this.#gradient(invoke("fake_quant_grad", inputs, { ...GRID, need_gx: 1 }));
    }
    if (scales && this.#choose(2) === 0) {
      const inputs = [values, scales, undefined, g.values];
      return this.#gradient(invoke("fp4_grad", inputs, { ...NVFP4, need_gx: 1, spends_grad: 0 }));
    }
    const dtype = dtypeCode("bf16" satisfies DType);
    if (this.#choose(2) === 0) {
      const [scale, zero, y] = invoke("quant_operand", [values, this.#clip], {
        ...GRID,
        dtype,
        values: 0,
      });
      return { values: y as Tensor, grid: [scale as Tensor, zero as Tensor] };
    }
    const [made, factor, y] = invoke("fp4_operand", [values], { ...NVFP4, dtype });
    factor?.dispose();
    return { values: y as Tensor, scales: made as Tensor };
  }

  #gradient([gx, ...rest]: readonly Tensor[]): Matrix {
    for (const tensor of rest) tensor.dispose();
    return { values: gx as Tensor };
  }
}

const sameBytes: CudaCheck = {
  name: "passes beside each other give the bytes of passes one by one",
  run: async (device) => {
    const numbers = new Draw(5, "f32", true);
    const place = { device, dtype: "f32" as const };
    const starts = [0, 1, 2].map(() => toTensor(numbers.normal([ROWS, COLUMNS]), place));
    const clip = toTensor(numbers.normal([1], 0, 4), place);
    let off = 0;
    let matrices = 0;
    try {
      for (let seed = 0; seed < PROGRAMS; seed++) {
        const run = async (waits: boolean): Promise<Uint8Array[]> => {
          const program = new Program(seed, starts, clip);
          await synchronize(device);
          for (let i = 0; i < STEPS; i++) {
            program.step();
            if (waits) await synchronize(device);
          }
          return program.finish();
        };
        const [alone, together] = [await run(true), await run(false)];
        matrices += alone.length;
        off += alone.filter((bytes, i) => Buffer.compare(bytes, together[i] as Uint8Array)).length;
      }
    } finally {
      for (const tensor of [...starts, clip]) tensor.dispose();
    }
    const text = `${PROGRAMS} programs of ${STEPS} passes, ${off} of ${matrices} tensors differ`;
    return { ok: off === 0 && matrices > 0, text };
  },
};

export const PASS_CHECKS: readonly CudaCheck[] = [sameBytes];
