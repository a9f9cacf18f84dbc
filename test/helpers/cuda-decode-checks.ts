// Decoding on a GPU: recorded steps against steps op by op. No test runner in here: the same checks run on
// machines that have Node.js and the built addons alone (bench/check-calibration.ts).
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { Decoder, type StepToken } from "../../lib/generate/decoder.ts";
import type { KvType } from "../../lib/generate/kv-cache.ts";
import { openLanguageModel } from "../../lib/generate/open.ts";
import { exportRun, type QuantizeOptions, quantize } from "../../lib/index.ts";
import { CapturedGraph } from "../../lib/tensor/capture.ts";
import { openDevice } from "../../lib/tensor/compute-device.ts";
import { memory } from "../../lib/tensor/device.ts";
import { liveTensors } from "../../lib/tensor/tensor.ts";
import type { DeviceName, PrecisionName } from "../../lib/types.ts";
import { packageRoot } from "../../lib/util/package.ts";
import type { CudaCheck } from "./cuda-checks.ts";
import { stepLogits } from "./step-logits.ts";
import { withTokenizer } from "./tiny-tokenizer.ts";

const FIXTURES = path.join(packageRoot(), "test", "fixtures");
const BOOKS = path.join(FIXTURES, "books-test-head.txt");

const CAPACITY = 48;
const SLOTS = 5;

/** Three prompts of different lengths, then steps with one to five sequences, some of which pause. */
function script(vocabulary: number): StepToken[][] {
  const at = new Array<number>(SLOTS).fill(0);
  const token = (slot: number): StepToken => {
    const position = at[slot] as number;
    at[slot] = position + 1;
    return { slot, position, id: (31 * slot + 7 * position + 5) % vocabulary };
  };
  const steps = [3, 1, 6].map((length, slot) => Array.from({ length }, () => token(slot)));
  for (let i = 0; i < 28; i++) {
    const count = 1 + ((i * i) % SLOTS);
    steps.push(Array.from({ length: count }, (_, n) => token((i + n) % SLOTS)));
  }
  return steps;
}

/** Logits of all tokens of all steps, and how often a recording ran. */
async function decode(
  dir: string,
  device: DeviceName,
  kv: KvType | undefined,
  graphs: boolean,
  precision?: PrecisionName,
): Promise<{ readonly logits: Float32Array[]; readonly launches: number }> {
  const before = process.env["AQ_GRAPH"];
  process.env["AQ_GRAPH"] = graphs ? "1" : "0";
  const { launch } = CapturedGraph.prototype;
  let launches = 0;
  CapturedGraph.prototype.launch = function (this: CapturedGraph) {
    launches++;
    launch.call(this);
  };
  const opened = openDevice({ device, precision });
  const source = openLanguageModel(dir, opened.name);
  const decoder = new Decoder(source, { slots: SLOTS, capacity: CAPACITY, kv });
  try {
    const logits: Float32Array[] = [];
    for (const tokens of script(source.model.shape.vocabulary)) {
      // Prompts want the last token alone.
      const isPrompt = tokens.every(({ slot }) => slot === tokens[0]?.slot) && tokens.length > 1;
      const wanted = isPrompt ? [tokens.length - 1] : [...tokens.keys()];
      logits.push(...(await stepLogits(decoder, tokens, wanted)));
    }
    return { logits, launches };
  } finally {
    CapturedGraph.prototype.launch = launch;
    if (before === undefined) delete process.env["AQ_GRAPH"];
    else process.env["AQ_GRAPH"] = before;
    decoder.dispose();
    source.close();
    opened.release();
  }
}

type Made = Pick<QuantizeOptions, "wbits" | "abits" | "groupSize" | "scheme">;

/** A packed folder of a fixture, or the fixture itself, for the time of `body`; tiny ones get a tokenizer. */
async function withModel<T>(
  name: string,
  made: Made | undefined,
  body: (dir: string) => Promise<T>,
): Promise<T> {
  const folder = fs.mkdtempSync(path.join(tmpdir(), "aq-decode-"));
  const [run, out] = [path.join(folder, "run"), path.join(folder, "packed")];
  try {
    const tiny = /^tiny\/(.*)$/.exec(name)?.[1];
    const source = tiny
      ? withTokenizer(folder, tiny)
      : { model: path.join(FIXTURES, name), calib: BOOKS };
    if (!made) return await body(source.model);
    const some = { nsamples: 1, seqlen: 64, recipe: "rtn", device: "cpu" } as const;
    await quantize({ ...source, out: run, ...some, ...made });
    await exportRun({ run, format: made.scheme ? "compressed-tensors" : "aq", out });
    return await body(out);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function recordedCheck(name: string, model: string, made?: Made, kv?: KvType): CudaCheck {
  return {
    name: `decoding ${name}, recorded, gives the same bytes as op by op`,
    run: (device) =>
      withModel(model, made, async (dir) => {
        const eager = await decode(dir, device, kv, false);
        const [live, used] = [liveTensors(), memory(device).usedBytes];
        const recorded = await decode(dir, device, kv, true);
        const left = liveTensors() - live;
        const bytes = memory(device).usedBytes - used;
        const differ = recorded.logits.filter((row, i) => {
          const own = Buffer.from(row.buffer);
          const other = eager.logits[i] as Float32Array;
          return !own.equals(Buffer.from(other.buffer));
        }).length;
        const { launches } = recorded;
        const ok =
          differ === 0 && launches > 15 && eager.launches === 0 && left === 0 && bytes <= 0;
        const text = `${differ} of ${eager.logits.length} logits differ, ${launches} runs of recordings, ${left} tensors and ${bytes} bytes left`;
        return { ok, text };
      }),
  };
}

/** Compares the logits of both devices, by the largest difference in parts of the largest logit. */
function agreementCheck(
  name: string,
  [model, made, kv]: readonly [string, Made | undefined, KvType],
  [precision, limit]: readonly [PrecisionName, number],
): CudaCheck {
  return {
    name: `decoding ${name} in ${precision} agrees with the CPU`,
    run: (device) =>
      withModel(model, made, async (dir) => {
        const cpu = await decode(dir, "cpu", kv, false);
        const gpu = await decode(dir, device, kv, true, precision);
        const [top, apart] = cpu.logits.reduce(
          ([most, far], row, i) => {
            const other = gpu.logits[i] as Float32Array;
            return row.reduce<[number, number]>(
              ([a, b], x, v) => [
                Math.max(a, Math.abs(x)),
                Math.max(b, Math.abs(x - (other[v] as number))),
              ],
              [most, far],
            );
          },
          [0, 0] as [number, number],
        );
        const text = `${(apart / top).toExponential(1)} apart (limit ${limit})`;
        return { ok: apart <= limit * top, text };
      }),
  };
}

const W4 = { wbits: 4, groupSize: 32 };

export const DECODE_CHECKS: readonly CudaCheck[] = [
  recordedCheck("llama-gqa-4m", "llama-gqa-4m"),
  recordedCheck("opt-5m with caches in f16", "opt-5m", undefined, "f16"),
  recordedCheck("W4A16", "llama-gqa-4m", W4, "f16"),
  recordedCheck("W4A16 of opt-5m", "opt-5m", W4),
  recordedCheck("norms of q and k", "tiny/qwen3"),
  recordedCheck("W4A16 with norms of q and k", "tiny/qwen3", { wbits: 4 }),
  recordedCheck("W4A4", "llama-gqa-4m", { wbits: 4, abits: 4 }),
  recordedCheck("NVFP4", "llama-gqa-4m", { scheme: "NVFP4" }),
  agreementCheck("llama-gqa-4m", ["llama-gqa-4m", undefined, "f32"], ["f32", 1e-4]),
  agreementCheck("W4A16", ["llama-gqa-4m", W4, "f16"], ["f32", 2e-3]),
  agreementCheck("W4A16", ["llama-gqa-4m", W4, "f16"], ["bf16", 5e-2]),
  agreementCheck("norms of q and k", ["tiny/qwen3", undefined, "f32"], ["f32", 1e-4]),
  agreementCheck(
    "W4A16 with norms of q and k",
    ["tiny/qwen3", { wbits: 4 }, "f16"],
    ["bf16", 5e-2],
  ),
  agreementCheck("W4A16 of opt-5m", ["opt-5m", W4, "f16"], ["f16", 2e-2]),
];
