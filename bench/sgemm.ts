// Our SGEMM (the fused product without grids) against OpenBLAS on one thread, in the same run and in
// turns, so that whatever else the machine does meets both. Also what a second thread brings.
import { invoke } from "../lib/tensor/invoke.ts";
import { keep, scope } from "../lib/tensor/scope.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "../test/helpers/random.ts";
import { toTensor } from "../test/helpers/run-op.ts";
import { type Bench, isWanted, printRow, summarize, timeOnce, withThreads } from "./harness.ts";
import { OpenBlas } from "./openblas.ts";

const SIZES = [512, 1024, 2048] as const;
const ROUNDS = 9;
const WIDTHS = [-12, 12, 12, 12, 12, 12];

const PLAIN = {
  trans_a: 0,
  trans_b: 0,
  a_bits: 0,
  a_group: 0,
  b_bits: 0,
  b_group: 0,
  accumulate: 0,
  bf16: 0,
};

/** The product c = a b of square f32 matrices. */
export interface Product {
  run(): void;
  dispose(): void;
}

/** Makes the matrices of a product. */
export function sgemm(n: number, device: string): Product {
  const draw = new Draw(n, "f32");
  const [a, b, c] = [0, 1, 2].map(() =>
    keep(toTensor(draw.normal([n, n]), { device, dtype: "f32" })),
  ) as [Tensor, Tensor, Tensor];
  const inputs = [a, b, ...new Array<undefined>(6).fill(undefined)];
  return {
    run: () => scope(() => void invoke("fake_quant_gemm", inputs, PLAIN, [c])),
    dispose: () => {
      for (const tensor of [a, b, c]) tensor.dispose();
    },
  };
}

/** Calls that fill a fifth of a second on one thread of about 100 GFLOP/s. */
function callsPerTurn(n: number): number {
  return Math.max(2, Math.round(0.2 / ((2 * n ** 3) / 100e9)));
}

function median(values: readonly number[]): number {
  return summarize(values).median;
}

/** Prints a row per size: rates of the best turns, ratios as medians over turns. */
export async function benchSgemm({ device, filters, save }: Bench): Promise<void> {
  if (!isWanted(filters, "sgemm") || device !== "cpu") return;
  const peer = await OpenBlas.start();
  process.stdout.write(
    `\nsgemm against ${peer.description}; GFLOP/s of the best turn of ${ROUNDS}\n`,
  );
  printRow(["size", "1 thread", "2 threads", "OpenBLAS", "own/peer", "2/1 threads"], WIDTHS);
  try {
    for (const n of SIZES) {
      const rounds = await takeTurns(n, device, peer);
      const flops = 2 * n ** 3;
      const rate = (pick: (round: Turn) => number) =>
        flops / summarize(rounds.map(pick)).best / 1e9;
      const [one, two, other] = [rate((r) => r.one), rate((r) => r.two), rate((r) => r.peer)];
      const ratio = median(rounds.map((r) => r.peer / r.one));
      const speedup = median(rounds.map((r) => r.one / r.two));
      const cells = [one, two, other].map((value) =>
        Number.isFinite(value) ? value.toFixed(1) : "-",
      );
      const ratios = [ratio, speedup].map((value) =>
        Number.isFinite(value) ? value.toFixed(3) : "-",
      );
      printRow([`${n}`, ...cells, ...ratios], WIDTHS);
      save({
        bench: "sgemm",
        n,
        one,
        two,
        peer: other,
        peerName: peer.description,
        ratio,
        speedup,
      });
    }
  } finally {
    peer.stop();
  }
}

/** Seconds per product in one turn of each; NaN for a peer that is not there. */
interface Turn {
  readonly one: number;
  readonly two: number;
  readonly peer: number;
}

async function takeTurns(n: number, device: string, peer: OpenBlas): Promise<readonly Turn[]> {
  const calls = callsPerTurn(n);
  const rounds: Turn[] = [];
  const { run, dispose } = sgemm(n, device);
  const turn = (threads: number) =>
    withThreads(threads, () => {
      run();
      return Math.min(...Array.from({ length: calls }, () => timeOnce(run)));
    });
  for (let round = 0; round < ROUNDS; round++) {
    const one = turn(1);
    const other = await peer.time(n, calls);
    rounds.push({ one, two: turn(2), peer: other });
  }
  dispose();
  return rounds;
}
