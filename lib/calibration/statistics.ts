/**
 * Activation statistics, taken while the full-precision stream passes through a block. What each window
 * shows stays on the device until the last one has passed, so that no window is waited for.
 */

import type { ActivationStatistics } from "../affine/site.ts";
import type { Graph, Var } from "../autograd/graph.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { invoke } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Windows that one step of the running mean covers. */
const BATCH = 4;
/** Weight of the old value in the running mean. */
const KEEP = 0.9;

/** What `channel_stats` gives, in its order. */
const PARTS = ["magnitude", "max", "min"] as const;

/** Rows of one activation: [N, C] for each part, one row a window. */
type Seen = Readonly<Record<(typeof PARTS)[number], Tensor>>;

/**
 * A hook that watches every activation that the block names, window after window; `endWindow` goes to
 * the next. Dispose it after use.
 */
export class StatisticsHook implements ActivationHook {
  readonly #windows: number;
  readonly #seen = new Map<string, Seen>();
  #window = 0;

  constructor(windows: number) {
    this.#windows = windows;
  }

  apply(_graph: Graph, name: string, x: Var, group: number): Var {
    // Per-head activations (q, k, v) have no site that starts from statistics.
    if (group !== 0) return x;
    const { tensor } = x.value;
    const channels = tensor.shape.at(-1) as number;
    const seen = this.#seen.get(name) ?? this.#add(name, channels, tensor.device);
    scope(() => {
      const row = PARTS.map((part) => seen[part].view(this.#window * channels, [channels]));
      invoke("channel_stats", [tensor], {}, row);
    });
    return x;
  }

  #add(name: string, channels: number, device: string): Seen {
    const rows = (): Tensor => keep(Tensor.empty([this.#windows, channels], "f32", device));
    const seen = { magnitude: rows(), max: rows(), min: rows() };
    this.#seen.set(name, seen);
    return seen;
  }

  endWindow(): void {
    this.#window++;
  }

  /** The statistics of all windows. */
  async finish(): Promise<ActivationStatistics> {
    const max = new Map<string, Float32Array>();
    const middle = new Map<string, Float32Array>();
    for (const [name, seen] of this.#seen) {
      const read = async (part: (typeof PARTS)[number]): Promise<readonly Float32Array[]> =>
        rowsOf((await seen[part].readAsync()) as Float32Array, this.#windows);
      max.set(name, (await read("magnitude")).reduce(larger));
      middle.set(name, runningMiddle(await read("max"), await read("min")));
    }
    return { max, middle };
  }

  dispose(): void {
    for (const seen of this.#seen.values()) for (const part of PARTS) seen[part].dispose();
  }
}

function rowsOf(data: Float32Array, rows: number): Float32Array[] {
  const size = data.length / rows;
  return Array.from({ length: rows }, (_, i) => data.subarray(i * size, (i + 1) * size));
}

/** Running mean over batches of windows of the middle of each channel's range. */
function runningMiddle(
  highs: readonly Float32Array[],
  lows: readonly Float32Array[],
): Float32Array {
  let mean: Float32Array | undefined;
  for (let at = 0; at < highs.length; at += BATCH) {
    const max = highs.slice(at, at + BATCH).reduce(larger);
    const min = lows.slice(at, at + BATCH).reduce(smaller);
    const middle = max.map((v, i) => (v + (min[i] as number)) / 2);
    mean = mean?.map((v, i) => KEEP * v + (1 - KEEP) * (middle[i] as number)) ?? middle;
  }
  if (!mean) throw new TypeError("there are no windows");
  return mean;
}

function larger(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((v, i) => Math.max(v, b[i] as number));
}

function smaller(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((v, i) => Math.min(v, b[i] as number));
}
