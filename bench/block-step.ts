/**
 * A training step of one large block, with made-up weights and activations: forward, backward, update.
 *
 *   npm run bench:step -- [FILTER...] [--device cuda:0] [--precision bf16] [--tokens 2048]
 *                         [--steps 40] [--hidden 4096] [--mlp 11008] [--heads 32] [--kv-heads 32]
 *                         [--split] [--save FILE]
 *
 * Prints the median step of each setting, the rate of its products, and the peak of the device's
 * memory. --split runs again with a wait after every op and prints what each op takes. bench/peers/
 * published_step.py times the published method on the same shape.
 */
import { parseArgs } from "node:util";
import { Eager } from "../lib/autograd/graph.ts";
import { runBlock } from "../lib/calibration/finish-block.ts";
import { affinePhase } from "../lib/calibration/phases/affine.ts";
import { roundPhase } from "../lib/calibration/phases/round.ts";
import type { BlockProblem } from "../lib/calibration/problem.ts";
import { resolveSettings } from "../lib/calibration/settings.ts";
import { StatisticsHook } from "../lib/calibration/statistics.ts";
import { Stream } from "../lib/calibration/stream.ts";
import { llama } from "../lib/models/llama.ts";
import type { LoadedWeights } from "../lib/models/load.ts";
import { cudaAddon } from "../lib/native/cuda.ts";
import { native } from "../lib/native/load.ts";
import { deviceInfo, memory, synchronize } from "../lib/tensor/device.ts";
import { opNames } from "../lib/tensor/invoke.ts";
import { setPrecision } from "../lib/tensor/precision.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import type { PrecisionName, QuantizeOptions } from "../lib/types.ts";
import { Draw } from "../test/helpers/random.ts";
import { isWanted, printRow, saver, summarize } from "./harness.ts";

const { values, positionals: filters } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: "string", default: "cuda:0" },
    precision: { type: "string", default: "bf16" },
    tokens: { type: "string", default: "2048" },
    steps: { type: "string", default: "40" },
    hidden: { type: "string", default: "4096" },
    mlp: { type: "string", default: "11008" },
    heads: { type: "string", default: "32" },
    "kv-heads": { type: "string" },
    split: { type: "boolean", default: false },
    save: { type: "string" },
  },
});

interface Setting {
  readonly name: string;
  readonly options: Omit<QuantizeOptions, "model" | "out">;
  readonly phase: "affine" | "round";
}

const SETTINGS: readonly Setting[] = [
  { name: "W4A4", options: { wbits: 4, abits: 4, recipe: "affine" }, phase: "affine" },
  { name: "W3A16", options: { wbits: 3, recipe: "affine" }, phase: "affine" },
  {
    name: "W3A16 norm-full",
    options: { wbits: 3, recipe: "affine", normFull: true },
    phase: "affine",
  },
  { name: "W4A4 round", options: { wbits: 4, abits: 4 }, phase: "round" },
  { name: "W3A16 round", options: { wbits: 3 }, phase: "round" },
  { name: "NVFP4", options: { scheme: "NVFP4", recipe: "affine" }, phase: "affine" },
  { name: "NVFP4 round", options: { scheme: "NVFP4" }, phase: "round" },
];

/** Windows, and so steps, of an epoch; at its end everything is waited for. */
const WINDOWS = 8;
/** Epochs that are not counted. */
const WARM_UP = 1;

const { device } = values;
const tokens = Number(values.tokens);
const [hidden, mlp, heads] = [Number(values.hidden), Number(values.mlp), Number(values.heads)];
const kvHeads = Number(values["kv-heads"] ?? heads);

const model = llama.open(
  {
    model_type: "llama",
    hidden_size: hidden,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    intermediate_size: mlp,
    num_hidden_layers: 1,
    max_position_embeddings: tokens,
    vocab_size: 64,
    rms_norm_eps: 1e-5,
  },
  (name) => !name.endsWith(".bias"),
);

/** Normal numbers, repeated from a pool: drawing hundreds of millions would take minutes. */
const pool = Float32Array.from(new Draw(1, "f32", true).normal([1 << 20]).data);
function normal(shape: readonly number[], scale: number, offset = 0): Tensor {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < data.length; i++) {
    data[i] = (pool[(i + (i >> 20) * 7919) & (pool.length - 1)] as number) * scale + offset;
  }
  return Tensor.from(data, shape, "f32", device);
}

function makeWeights(): LoadedWeights {
  return Object.fromEntries(
    model.blockTensors(0).map(({ key, shape }) => {
      const isGain = key.startsWith("norm");
      return [key, isGain ? normal(shape, 0.1, 1) : normal(shape, 1 / Math.sqrt(hidden))];
    }),
  );
}

async function makeProblem(weights: LoadedWeights, { options }: Setting): Promise<BlockProblem> {
  const settings = resolveSettings({ model: "", out: "", ...options });
  const context = model.context(tokens, "f32", device);
  const statistics = new StatisticsHook(1);
  const shape = { windows: WINDOWS, tokens, channels: hidden };
  const stream = (): Stream => new Stream(shape, undefined, device);
  const [inputs, targets, aug] = [stream(), stream(), stream()];
  for (let n = 0; n < WINDOWS; n++) {
    scope(() => {
      inputs.store(n, normal([1, tokens, hidden], 1));
      const x = inputs.window(n);
      const y = runBlock(model, context, weights, x);
      targets.store(n, y);
      aug.store(n, y);
    });
  }
  scope(() => {
    const graph = new Eager();
    const constants = Object.entries(weights).map(([key, w]) => [key, graph.constant(w)]);
    const x = graph.constant(inputs.window(0));
    model.block(graph, context, Object.fromEntries(constants), x, statistics);
  });
  const { scheme, recipe, train } = settings;
  return {
    index: 0,
    model,
    context,
    weights,
    statistics: await statistics.finish(),
    inputs,
    targets,
    augTargets: train.augLoss ? aug : undefined,
    scheme,
    kept: new Set(),
    recipe,
    settings: train,
    rotated: false,
  };
}

/** Seconds by op, while every op is waited for. */
const byOp = new Map<string, { seconds: number; calls: number }>();
let isSplit = false;
function watchOps(): void {
  const engine = native() as { invoke: ReturnType<typeof native>["invoke"] };
  const { invoke } = engine;
  const names = opNames();
  engine.invoke = (op, ...rest) => {
    const began = performance.now();
    const result = invoke(op, ...rest);
    const entry = byOp.get(names[op] as string) ?? { seconds: 0, calls: 0 };
    entry.seconds += (performance.now() - began) / 1e3;
    entry.calls++;
    if (isSplit) byOp.set(names[op] as string, entry);
    return result;
  };
}

/** Seconds of a step, of each epoch after the warm-up: steps overlap, so single ones cannot be timed. */
async function stepSeconds(problem: BlockProblem, { phase }: Setting): Promise<number[]> {
  const epochs = WARM_UP + Math.ceil(Number(values.steps) / WINDOWS);
  const settings = { ...problem.settings, affineEpochs: epochs, roundEpochs: epochs };
  const times: number[] = [];
  let last = 0;
  const hooks = {
    onEpoch(epoch: number): void {
      const now = performance.now();
      if (epoch >= WARM_UP) times.push((now - last) / 1e3 / WINDOWS);
      isSplit = epoch >= WARM_UP - 1;
      last = now;
    },
  };
  if (phase === "affine") {
    const { parameters, failed } = await affinePhase({ ...problem, settings }, hooks);
    for (const parameter of parameters) parameter.dispose();
    if (failed) throw new Error("the phase failed at every rate");
  } else {
    const { state } = await roundPhase({ ...problem, settings }, problem.weights, [], hooks);
    if (!state) throw new Error("the phase failed at every rate");
    for (const parameter of state.clips) parameter.dispose();
    for (const offset of state.offsets.values()) offset.dispose();
  }
  isSplit = false;
  await synchronize(device);
  return times;
}

/** Multiply-adds twice: products forward and for both gradients, and causal attention. */
function flops(): number {
  const weights = model.linears.reduce((sum, { out, in: columns }) => sum + out * columns, 0);
  return 6 * tokens * weights + 7 * tokens * tokens * heads * (hidden / heads);
}

if (values.split) process.env["AQ_SYNC"] = "1";
if (device.startsWith("cuda")) cudaAddon();
setPrecision(device, values.precision as PrecisionName);
if (values.split) watchOps();
const { name, detail } = deviceInfo(device);
const shape = `C ${hidden}, F ${mlp}, ${heads}/${kvHeads} heads, T ${tokens}`;
process.stdout.write(`${device}: ${name}, ${detail}; ${shape}; ${values.precision} products\n`);
const WIDTHS = [-18, 10, 10, 9, 9];
const save = saver(values.save, device);
const weights = makeWeights();
printRow(["setting", "ms", "best ms", "TFLOP/s", "peak GB"], WIDTHS);
for (const setting of SETTINGS.filter((s) => isWanted(filters, s.name))) {
  const problem = await makeProblem(weights, setting);
  try {
    const { median, best } = summarize(await stepSeconds(problem, setting));
    const rate = flops() / median / 1e12;
    const peak = memory(device).peakBytes / 1e9;
    printRow(
      [
        setting.name,
        (median * 1e3).toFixed(2),
        (best * 1e3).toFixed(2),
        rate.toFixed(0),
        peak.toFixed(2),
      ],
      WIDTHS,
    );
    save({ bench: "block-step", setting: setting.name, shape, median, best, rate, peak });
    if (values.split) {
      const steps = WINDOWS * Math.ceil(Number(values.steps) / WINDOWS);
      for (const [op, { seconds, calls }] of [...byOp].sort(
        ([, a], [, b]) => b.seconds - a.seconds,
      )) {
        const each = (seconds / steps) * 1e3;
        if (each < 0.02) continue;
        printRow([`  ${op}`, each.toFixed(3), `x ${(calls / steps).toFixed(0)}`], WIDTHS);
      }
      byOp.clear();
    }
  } finally {
    problem.context.dispose();
    for (const stream of [problem.inputs, problem.targets]) stream.dispose();
    problem.augTargets?.dispose();
  }
}
