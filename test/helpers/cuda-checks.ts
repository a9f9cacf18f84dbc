// Calibration on a GPU against calibration on the CPU. No test runner in here: the same checks run on
// machines that have Node.js and the built addons alone (bench/check-calibration.ts).
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import {
  AqError,
  evaluate,
  type QuantizeEvent,
  type QuantizeOptions,
  type QuantizeResult,
  quantize,
} from "../../lib/index.ts";
import { CapturedGraph } from "../../lib/tensor/capture.ts";
import { openDevice } from "../../lib/tensor/compute-device.ts";
import { kernelCalls } from "../../lib/tensor/invoke.ts";
import { liveTensors, Tensor } from "../../lib/tensor/tensor.ts";
import { packageRoot } from "../../lib/util/package.ts";
import { blockGradients, distances, type Gradients, trainingGradients } from "./block-gradients.ts";

/** What a check found: a line for people, and whether it is as it should be. */
export interface Finding {
  readonly ok: boolean;
  readonly text: string;
}

export interface CudaCheck {
  readonly name: string;
  run(device: `cuda:${number}`): Promise<Finding>;
}

const FIXTURES = path.join(packageRoot(), "test", "fixtures");
const BOOKS = path.join(FIXTURES, "books-test-head.txt");
const SMALL = { calib: BOOKS, nsamples: 4, seqlen: 64, epochs: 4 } as const;
/** What is run where no scheme is named. */
const W4A4 = { wbits: 4, abits: 4 } as const;

const W3_GROUPS = { wbits: 3, abits: 16, groupSize: 32 } as const;

/** Enough for two runs that round differently to end within a few percent. */
const MEDIUM = { nsamples: 8, seqlen: 256, epochs: 8 } as const;

/**
 * How far apart the perplexities of two runs may be that round differently. Training on four short
 * windows amplifies rounding: on the CPU, two instruction sets differ by up to 9 % with these settings.
 * Larger runs are compared in bench/quality.ts.
 */
const CHAOS = 0.15;

type Settings = Omit<QuantizeOptions, "model" | "out"> & { readonly model?: string };

interface Quantized {
  readonly result: QuantizeResult;
  /** The weights that were written. */
  readonly bytes: Buffer;
}

/** One quantization in a folder of its own, which is removed; with `stops`, in two sessions. */
async function run(
  { model = "llama-gqa-4m", ...options }: Settings,
  stops = false,
): Promise<Quantized> {
  const out = fs.mkdtempSync(path.join(tmpdir(), "aq-cuda-"));
  const bits = options.scheme ? {} : W4A4;
  const all = { ...SMALL, ...bits, ...options, model: path.join(FIXTURES, model), out };
  try {
    if (stops) await stopInSecondBlock(all);
    const result = await quantize(all);
    return { result, bytes: fs.readFileSync(path.join(out, "model.safetensors")) };
  } finally {
    fs.rmSync(out, { recursive: true, force: true });
  }
}

async function stopInSecondBlock(options: QuantizeOptions): Promise<void> {
  const stop = new AbortController();
  const onEvent = (event: QuantizeEvent): void => {
    if (event.event === "step" && event.block === 1) stop.abort();
  };
  try {
    await quantize(options, { onEvent, signal: stop.signal });
  } catch (error) {
    if (!(error instanceof AqError && error.code === "AQ_STOPPED")) throw error;
  }
}

function worst(a: Gradients, b: Gradients): { name: string; distance: number } {
  return distances(a, b).reduce((most, own) => (own.distance > most.distance ? own : most));
}

/** Compares the gradients of one computation on both devices. */
function gradientCheck(
  name: string,
  limit: number,
  compute: (device: string) => Promise<Gradients>,
): CudaCheck {
  return {
    name,
    async run(device) {
      const { name: tensor, distance } = worst(await compute("cpu"), await compute(device));
      const text = `${tensor} differs most, by ${distance.toExponential(1)} (limit ${limit})`;
      return { ok: distance <= limit, text };
    },
  };
}

/** Compares the perplexities of a small run on both devices. */
function runCheck(name: string, options: Settings, limit: number): CudaCheck {
  return {
    name,
    async run(device) {
      const { precision, ...others } = options;
      const cpu = await run({ ...others, device: "cpu" });
      const gpu = await run({ ...others, device, precision: precision ?? "f32" });
      const [expected, actual] = [cpu.result.pplAfter, gpu.result.pplAfter];
      const apart = Math.abs(actual / expected - 1);
      const [slow, fast] = [cpu, gpu].map(({ result }) => `${result.seconds.toFixed(1)} s`);
      const text = `perplexity ${actual.toFixed(3)} in ${fast}, ${expected.toFixed(3)} on the CPU in ${slow}, ${(100 * apart).toFixed(2)} % apart`;
      return { ok: apart <= limit, text };
    },
  };
}

/** Ops of which a calibration must call the GPU's kernels. */
const CALLED = ["fake_quant_gemm", "masked_adam", "lu_inverse", "attention", "fake_quant_grad"];

const counters: CudaCheck = {
  name: "a run calls the GPU's kernels and none of the CPU's",
  async run(device) {
    const [cpuBefore, gpuBefore] = [kernelCalls("cpu"), kernelCalls("cuda")];
    await run({ device });
    const [cpu, gpu] = [kernelCalls("cpu"), kernelCalls("cuda")];
    const onCpu = Object.keys(cpu).filter((op) => cpu[op] !== cpuBefore[op]);
    const missing = CALLED.filter((op) => (gpu[op] ?? 0) <= (gpuBefore[op] ?? 0));
    const calls = CALLED.map((op) => `${op} ${(gpu[op] ?? 0) - (gpuBefore[op] ?? 0)}`).join(", ");
    const text = `on the CPU: ${onCpu.join(", ") || "none"}; on the GPU: ${calls}`;
    return { ok: onCpu.length === 0 && missing.length === 0, text };
  },
};

function sameTwice(name: string, options: Settings): CudaCheck {
  return {
    name: `${name} gives the same bytes, spilled or resumed, and leaves no tensor`,
    async run(device) {
      const live = liveTensors();
      const all = { ...options, device };
      const first = await run(all);
      const others = {
        again: await run(all),
        spilled: await run({ ...all, streamMemory: 100_000 }),
        resumed: await run(all, true),
      };
      const left = liveTensors() - live;
      const unequal = Object.entries(others)
        .filter(([, { bytes }]) => !first.bytes.equals(bytes))
        .map(([name]) => name);
      const text = `differs: ${unequal.join(", ") || "none"}; ${left} tensors left`;
      return { ok: unequal.length === 0 && left === 0, text };
    },
  };
}

/** Runs `body` with recordings switched off or on, and counts the recorded steps that it runs. */
async function withRecordings<T>(
  on: boolean,
  body: () => Promise<T>,
): Promise<{ readonly value: T; readonly launches: number }> {
  const { launch } = CapturedGraph.prototype;
  const before = process.env["AQ_GRAPH"];
  let launches = 0;
  CapturedGraph.prototype.launch = function (this: CapturedGraph): void {
    launches++;
    launch.call(this);
  };
  process.env["AQ_GRAPH"] = on ? "1" : "0";
  try {
    return { value: await body(), launches };
  } finally {
    CapturedGraph.prototype.launch = launch;
    if (before === undefined) delete process.env["AQ_GRAPH"];
    else process.env["AQ_GRAPH"] = before;
  }
}

const recorded: CudaCheck = {
  name: "steps that are recorded give the bytes of steps op by op",
  async run(device) {
    const live = liveTensors();
    const texts: string[] = [];
    let ok = true;
    for (const [name, options] of Object.entries({
      W4A4: {},
      "two windows a step": { nsamples: 9, batch: 2 },
      "OPT in groups": { model: "opt-5m", ...W3_GROUPS },
      "a matrix behind each norm": { ...W3_GROUPS, normFull: true },
      NVFP4: { scheme: "NVFP4" },
    })) {
      const [graph, ops] = [
        await withRecordings(true, () => run({ device, ...options })),
        await withRecordings(false, () => run({ device, ...options })),
      ];
      const isSame = graph.value.bytes.equals(ops.value.bytes);
      ok &&= isSame && graph.launches > 0 && ops.launches === 0;
      texts.push(`${name}: ${isSame ? "same" : "differs"}, ${graph.launches} recorded`);
    }
    const left = liveTensors() - live;
    return { ok: ok && left === 0, text: `${texts.join("; ")}; ${left} tensors left` };
  },
};

const evaluation: CudaCheck = {
  name: "perplexity of a checkpoint in each precision",
  async run(device) {
    const options = { model: path.join(FIXTURES, "llama-gqa-4m"), text: BOOKS, windows: 8 };
    const { ppl } = await evaluate({ ...options, device: "cpu" });
    const limits = { f32: 1e-5, f16: 1e-3, bf16: 1e-2 } as const;
    let ok = true;
    const texts: string[] = [];
    for (const precision of ["f32", "f16", "bf16"] as const) {
      const apart = (await evaluate({ ...options, device, precision })).ppl / ppl - 1;
      ok &&= Math.abs(apart) <= limits[precision];
      texts.push(`${precision} ${apart.toExponential(1)}`);
    }
    return { ok, text: `off by ${texts.join(", ")}` };
  },
};

/** What must be said, and where. */
const sentences: CudaCheck = {
  name: "what cannot be had is refused in one sentence",
  async run(device) {
    const said = (body: () => unknown): string => {
      try {
        body();
        return "nothing was refused";
      } catch (error) {
        return error instanceof AqError ? error.message : `unexpected: ${error}`;
      }
    };
    const held = openDevice({ device, precision: "f32" });
    const alive = Tensor.empty([64], "f32", device);
    const found = [
      [said(() => openDevice({ device: "cuda:99" })), "there is no device cuda:99", `${device} (`],
      [said(() => openDevice({ device, precision: "bf16" })), "at work", "f32 products"],
      [
        said(() => Tensor.empty([2 ** 40], "f32", device)),
        "out of memory",
        "requested",
        "free",
        "largest tensors alive",
      ],
    ] as const;
    alive.dispose();
    held.release();
    const wrong = found.filter(([text, ...parts]) => !parts.every((part) => text.includes(part)));
    return {
      ok: wrong.length === 0,
      text: (wrong.length > 0 ? wrong : found).map(([text]) => text).join(" | "),
    };
  },
};

/** Gradients of quantizers differ by a code on the other side of a boundary: up to this for one. */
const ONE_CODE = 5e-2;

/**
 * The same of 4-bit floats, where a code is up to a third of the number and a scale comes in steps of a
 * tenth. On the CPU alone, an input that is changed by 1e-6 changes gradients by up to 0.16, with
 * activations left alone by up to 0.14.
 */
const ONE_FLOAT = 0.3;

/** Quick ones first. */
export const CUDA_CHECKS: readonly CudaCheck[] = [
  sentences,
  gradientCheck("gradients of a block in full precision", 1e-5, blockGradients),
  gradientCheck("gradients of a training step, W4A4", ONE_CODE, (device) =>
    trainingGradients(device, { wbits: 4, abits: 4 }),
  ),
  gradientCheck("gradients of a training step, W4A16 in groups", ONE_CODE, (device) =>
    trainingGradients(device, { wbits: 4, groupSize: 32 }),
  ),
  gradientCheck("gradients of a training step with norms of q and k, W4A4", ONE_CODE, (device) =>
    trainingGradients(device, { wbits: 4, abits: 4 }, "tiny/qwen3"),
  ),
  gradientCheck("gradients of a training step, NVFP4", ONE_FLOAT, (device) =>
    trainingGradients(device, { scheme: "NVFP4" }),
  ),
  gradientCheck("gradients of a training step, NVFP4A16", ONE_FLOAT, (device) =>
    trainingGradients(device, { scheme: "NVFP4A16" }),
  ),
  gradientCheck("gradients of a training step, MXFP4A16", ONE_CODE, (device) =>
    trainingGradients(device, { scheme: "MXFP4A16" }),
  ),
  evaluation,
  counters,
  sameTwice("the same run", {}),
  sameTwice("the same run in NVFP4", { scheme: "NVFP4" }),
  recorded,
  runCheck("rounded to nearest", { recipe: "rtn" }, 1e-2),
  runCheck("OPT rounded to nearest", { model: "opt-5m", recipe: "rtn" }, 1e-2),
  runCheck("a run in f32", MEDIUM, 0.03),
  runCheck("a run in bf16", { ...MEDIUM, precision: "bf16" }, 0.04),
  runCheck("weights alone, in f16", { precision: "f16", ...W3_GROUPS }, 0.04),
  runCheck("NVFP4 rounded to nearest", { scheme: "NVFP4", recipe: "rtn" }, 1e-2),
  runCheck("NVFP4", { ...MEDIUM, scheme: "NVFP4" }, 0.03),
  runCheck("MXFP4A16 in bf16", { ...MEDIUM, scheme: "MXFP4A16", precision: "bf16" }, 0.03),
  runCheck("polish and a Hadamard transform", { polish: 1, hadamard: "down" }, CHAOS),
  runCheck("OPT", { model: "opt-5m" }, CHAOS),
  runCheck("OPT with the published recipe", { model: "opt-5m", recipe: "paper-w4a4" }, CHAOS),
  runCheck(
    "gptq, with a matrix behind each norm",
    { wbits: 3, rounding: "gptq", normFull: true },
    CHAOS,
  ),
];
