/**
 * A decoding step of a stack of large made-up blocks: one new token of each of several sequences, with
 * weights as codes of 4 bits and, by the same code, in bf16.
 *
 *   npm run bench:decode-step -- [--device cuda:0] [--precision bf16] [--batch 1,2,4,8,16,32,64]
 *                               [--context 512] [--kv f16] [--blocks 4] [--hidden 4096] [--mlp 11008]
 *                               [--heads 32] [--kv-heads 32] [--group 128] [--asymmetric]
 *                               [--weights w4,bf16] [--separate] [--rounds 9] [--save FILE]
 *
 * "graph": the step as one recording that is enqueued again and again, with one wait at the end. "user": a
 * step and reading its result, one after the other. The share is that of a copy's rate of the same run,
 * over the bytes that a step must read: packed weights with their scales and zeros, or numbers, and the
 * caches behind the context. Embedding and head are no part of it. --separate: linears that read the same
 * input stay products of their own.
 */
import { parseArgs } from "node:util";
import { BlockStack } from "../lib/generate/block-stack.ts";
import type { KvType, Places } from "../lib/generate/kv-cache.ts";
import { cudaAddon } from "../lib/native/cuda.ts";
import { type CapturedGraph, capture } from "../lib/tensor/capture.ts";
import { deviceInfo } from "../lib/tensor/device.ts";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { setPrecision } from "../lib/tensor/precision.ts";
import { keep, scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import type { PrecisionName } from "../lib/types.ts";
import { Draw } from "../test/helpers/random.ts";
import { printRow, saver, summarize, timeQueue } from "./harness.ts";
import { type MadeUpModel, madeUpSource } from "./made-up-checkpoint.ts";

const { values } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    precision: { type: "string", default: "bf16" },
    batch: { type: "string", default: "1,2,4,8,16,32,64" },
    context: { type: "string", default: "512" },
    kv: { type: "string", default: "f16" },
    blocks: { type: "string", default: "4" },
    hidden: { type: "string", default: "4096" },
    mlp: { type: "string", default: "11008" },
    heads: { type: "string", default: "32" },
    "kv-heads": { type: "string" },
    group: { type: "string", default: "128" },
    asymmetric: { type: "boolean", default: false },
    weights: { type: "string", default: "w4,bf16" },
    separate: { type: "boolean", default: false },
    rounds: { type: "string", default: "9" },
    save: { type: "string" },
  },
});

const { device } = values;
const isGpu = device !== "cpu";
const batches = values.batch.split(",").map(Number);
const context = Number(values.context);
const kv = values.kv as KvType;
const group = Number(values.group);
const heads = Number(values.heads);
const sizes = {
  blocks: Number(values.blocks),
  hidden: Number(values.hidden),
  mlp: Number(values.mlp),
  heads,
  kvHeads: Number(values["kv-heads"] ?? heads),
  maxTokens: context + 1,
};
const headDim = sizes.hidden / heads;

const KV_BYTES: Readonly<Record<KvType, number>> = { f32: 4, f16: 2, bf16: 2, int4: 0.5 };
/** Tokens of a context that are run together. */
const PIECE = 256;
/** Floats of the copy whose rate is taken: far more than a cache holds. */
const COPIED = 2 ** 27;
/** Steps of a round that a user would see. */
const USER_STEPS = 16;

/** Weights of a block's linears: how many, and bytes of each kind. */
function weightBytes(kind: string): number {
  const { hidden, mlp, kvHeads } = sizes;
  const kvRows = kvHeads * headDim;
  const matrices = [
    [hidden, hidden],
    [kvRows, hidden],
    [kvRows, hidden],
    [hidden, hidden],
    [mlp, hidden],
    [mlp, hidden],
    [hidden, mlp],
  ] as const;
  return matrices.reduce((sum, [out, columns]) => {
    if (kind === "bf16") return sum + 2 * out * columns;
    // A half of a byte a code; for each group a scale of two bytes and a zero of one.
    return sum + (out * columns) / 2 + 3 * out * Math.ceil(columns / group);
  }, 0);
}

function bytesRead(kind: string, batch: number): number {
  const cached = 2 * batch * (context + 1) * sizes.kvHeads * headDim * KV_BYTES[kv];
  return sizes.blocks * (weightBytes(kind) + cached);
}

/** Bytes per second of a copy on the device, read and written. */
function copyRate(): number {
  const count = isGpu ? COPIED : COPIED / 16;
  return scope(() => {
    const [from, to] = [0, 1].map(() => Tensor.empty([count], "f32", device)) as [Tensor, Tensor];
    for (const tensor of [from, to]) invoke("fill", [tensor], { value: 0 });
    const copy = (): void =>
      scope(() => void invokeOne("cast", [from], { dtype: dtypeCode("f32") }, to));
    const wait = (): void => void to.item();
    return { rate: (8 * count) / timeQueue([copy], wait).median };
  }).rate;
}

function ints(data: Iterable<number>): Tensor {
  return Tensor.from(Int32Array.from(data), undefined, "i32", device);
}

const pool = Float32Array.from(new Draw(3, "f32", true).normal([1 << 16]).data);
function states(count: number): Tensor {
  const { hidden } = sizes;
  const data = Float32Array.from({ length: count * hidden }, (_, i) => pool[i % pool.length] ?? 0);
  return Tensor.from(data, [1, count, hidden], "f32", device);
}

/** Fills the caches of every slot up to the context. */
function fillCaches(stack: BlockStack, slots: number): void {
  for (let slot = 0; slot < slots; slot++) {
    for (let at = 0; at < context; at += PIECE) {
      const count = Math.min(PIECE, context - at);
      scope(() => {
        const positions = ints(Array.from({ length: count }, (_, i) => at + i));
        const slots = ints(new Array(count).fill(slot));
        stack.run(states(count), { slots, positions, apart: count === 1 });
      });
    }
  }
}

interface StepTimes {
  readonly graph: number;
  readonly user: number;
}

/** Seconds of a step of `batch` sequences. */
async function timeStep(stack: BlockStack, batch: number): Promise<StepTimes> {
  const places: Places = {
    slots: ints(Array.from({ length: batch }, (_, i) => i)),
    positions: ints(new Array(batch).fill(context)),
    apart: true,
  };
  const state = states(batch);
  let result: Tensor | undefined;
  const step = (): Tensor => scope(() => keep(stack.run(state.view(0, state.shape), places)));
  // What is set up at first use must be before a recording.
  step().dispose();
  const graph: CapturedGraph | undefined = capture(device, () => {
    result = step();
  });
  const run = (): void => {
    if (graph) {
      graph.launch();
      return;
    }
    result?.dispose();
    result = step();
  };
  run();
  const wait = (): void => void result?.item();
  const rounds = Array.from({ length: Number(values.rounds) }, () => timeQueue([run], wait).median);
  const user: number[] = [];
  for (let i = 0; i < USER_STEPS; i++) {
    const start = performance.now();
    run();
    await result?.readAsync();
    user.push((performance.now() - start) / 1e3);
  }
  graph?.dispose();
  for (const tensor of [result, state, places.slots, places.positions]) tensor?.dispose();
  return { graph: summarize(rounds).median, user: summarize(user).median };
}

async function timeWeights(kind: string): Promise<Map<number, StepTimes>> {
  const weights: MadeUpModel["weights"] =
    kind === "bf16" ? kind : { group, symmetric: !values.asymmetric };
  const slots = Math.max(...batches);
  const source = madeUpSource({ ...sizes, weights }, device);
  const stack = new BlockStack(source, {
    slots,
    capacity: context + 1,
    kv,
    join: !values.separate,
  });
  try {
    fillCaches(stack, slots);
    const times = new Map<number, StepTimes>();
    for (const batch of batches) times.set(batch, await timeStep(stack, batch));
    return times;
  } finally {
    stack.dispose();
  }
}

if (device.startsWith("cuda")) cudaAddon();
if (isGpu) setPrecision(device, values.precision as PrecisionName);
const { name, detail } = deviceInfo(device);
const shape = `${sizes.blocks} blocks, C ${sizes.hidden}, F ${sizes.mlp}, ${heads}/${sizes.kvHeads} heads, context ${context}, caches in ${kv}`;
process.stdout.write(`${device}: ${name}, ${detail}; ${shape}; ${values.precision} products\n`);
const save = saver(values.save, device);
const kinds = values.weights.split(",");
const rate = copyRate();
const all = new Map<string, Map<number, StepTimes>>();
for (const kind of kinds) all.set(kind, await timeWeights(kind));
process.stdout.write(`copy ${(rate / 1e9).toFixed(0)} GB/s, read and written\n`);
const WIDTHS = [-8, 6, 10, 10, 9, 8, 9];
printRow(["weights", "batch", "graph ms", "user ms", "GB/s", "of copy", "bf16 /"], WIDTHS);
for (const [kind, times] of all) {
  for (const [batch, { graph, user }] of times) {
    const bytes = bytesRead(kind, batch);
    const share = bytes / graph / rate;
    const dense = all.get("bf16")?.get(batch)?.graph;
    printRow(
      [
        kind,
        `${batch}`,
        (graph * 1e3).toFixed(3),
        (user * 1e3).toFixed(3),
        (bytes / graph / 1e9).toFixed(0),
        `${(100 * share).toFixed(0)} %`,
        dense ? (dense / graph).toFixed(2) : "",
      ],
      WIDTHS,
    );
    save({
      bench: "decode-step",
      weights: kind,
      batch,
      shape,
      graph,
      user,
      bytes,
      share,
      copy: rate,
    });
  }
}
