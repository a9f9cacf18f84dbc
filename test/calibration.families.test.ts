// Every family of LLaMA's kind from a checkpoint to what is written of it: blocks keep their function,
// what is exported is what the run found, and a packed folder computes what the dequantized one does.
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { evaluate } from "../lib/evaluate.ts";
import { exportRun } from "../lib/export-run.ts";
import type { FormatName } from "../lib/export-types.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { load } from "../lib/index.ts";
import { inspect } from "../lib/inspect.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { verify } from "../lib/verify.ts";
import { argmax } from "./helpers/argmax.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { type Run, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { numbersOf, readTensors, tensorNamed } from "./helpers/tensor-file.ts";
import { type TinyModel, withTokenizer } from "./helpers/tiny-tokenizer.ts";

const tempFolder = tempFolders();
const KIN = ["mistral", "mistral-window", "qwen2", "qwen2-window", "qwen3", "qwen3-biases"];

/** A run on a random model in float32, so that nothing is rounded when it is written. */
async function runOn(
  name: string,
  options: Partial<QuantizeOptions>,
): Promise<TinyModel & { readonly out: string; readonly run: Run }> {
  const tiny = withTokenizer(tempFolder(), name, true);
  const out = path.join(tempFolder(), "out");
  const small = { nsamples: 4, seqlen: 32, epochs: 4, recipe: "default" } as const;
  const run = await smallRun({ ...tiny, ...small, out, ...options });
  return { ...tiny, out, run };
}

/** Perplexity of a folder on the text that it was calibrated on. */
async function pplOf(model: string, text: string): Promise<number> {
  return (await evaluate({ model, text, seqlen: 32, windows: 4, device: "cpu" })).ppl;
}

/** What `generate` writes, and what the whole sequence at once says that it should. */
async function expectGreedy(dir: string): Promise<void> {
  const model = await load(dir, { device: "cpu" });
  const prompt = model.encode("The quick");
  const ids: number[] = [];
  for await (const { id } of model.generate("The quick", { maxTokens: 16, temperature: 0 })) {
    if (id !== undefined) ids.push(id);
  }
  await model.dispose();
  const source = openLanguageModel(dir, "cpu");
  const all = [...prompt];
  for (const _ of ids) {
    const logits = forwardLogits(source, Int32Array.from(all));
    all.push(argmax(logits.subarray(-source.model.shape.vocabulary)));
  }
  source.close();
  expect(ids.length).toBeGreaterThan(0);
  expect(ids).toEqual(all.slice(prompt.length));
}

describe.each(KIN)("%s", (name) => {
  // Gains and biases are in 16 bits where others are to read them. Roundings of activations that then fall
  // the other way add up in a random model; what is stored is compared bit by bit anyway.
  it.each([
    ["W4A4", { wbits: 4, abits: 4 }, ["aq"], 0],
    ["W3A16", { wbits: 3 }, ["aq", "hf"], 0],
    ["W4A16 in groups", { wbits: 4, groupSize: 8 }, ["awq", "compressed-tensors", "gptq_v2"], 1e-3],
    ["NVFP4", { scheme: "NVFP4" }, ["compressed-tensors", "modelopt"], 0.15],
  ] as const)(
    "in %s keeps its blocks' function, and is the same wherever it is written",
    async (_, options, formats, limit) => {
      const live = liveTensors();
      const { out, run, calib } = await runOn(name, options);
      for (const { equivalence } of run.result.blocks) {
        if (equivalence !== null) expect(equivalence).toBeLessThan(1e-5);
      }
      await verify({ dir: out });
      const ppl = await pplOf(out, calib);
      const { kept = 0 } = inspect({ model: out }).quantized ?? {};
      for (const format of formats as readonly FormatName[]) {
        const target = path.join(tempFolder(), format);
        const { verified } = await exportRun({ run: out, format, out: target });
        expect(verified.linears).toBe(14 - kept);
        expect(Math.abs((await pplOf(target, calib)) / ppl - 1), format).toBeLessThanOrEqual(limit);
        await expectGreedy(target);
      }
      await expectGreedy(out);
      expect(liveTensors()).toBe(live);
    },
  );
});

describe("the gains of q and k", () => {
  const gains = (dir: string, key: string): Float64Array =>
    numbersOf(
      tensorNamed(
        readTensors(path.join(dir, "model.safetensors")),
        `model.layers.0.self_attn.${key}_norm.weight`,
      ),
    );

  it("learn one factor for each pair where q and k are quantized", async () => {
    const { model, out } = await runOn("qwen3", { wbits: 4, abits: 4, epochs: 8 });
    expect(inspect({ model: out }).sites.map(({ site }) => site)).toContain("qk-gains");
    const half = gains(model, "q").length / 2;
    const factors = ["q", "k"].map((key) => {
      const [before, after] = [gains(model, key), gains(out, key)];
      return Array.from(after, (x, i) => x / (before[i] as number));
    });
    const [q, k] = factors as [number[], number[]];
    for (let i = 0; i < half; i++) {
      expect(q[i]).toBeCloseTo(q[i + half] as number, 5);
      expect((q[i] as number) * (k[i] as number)).toBeCloseTo(1, 5);
    }
    expect(Math.max(...q.map((x) => Math.abs(x - 1)))).toBeGreaterThan(1e-3);
  });

  it.each([
    ["weights alone", { wbits: 3 }],
    ["4-bit floats, which leave q and k alone", { scheme: "NVFP4" as const }],
  ])("stay as they are with %s", async (_, options) => {
    const { model, out } = await runOn("qwen3", { ...options, recipe: "affine" });
    const sites = inspect({ model: out }).sites.map(({ site }) => site);
    expect(sites).toEqual(["updown", "norm.norm1", "norm.norm2", "vo"]);
    for (const key of ["q", "k"]) expect(gains(out, key)).toEqual(gains(model, key));
  });
});

describe("options that change the block", () => {
  it.each([
    ["qwen2", { wbits: 4, abits: 4, rotate: "on", hadamard: "down" }],
    ["qwen3", { wbits: 4, abits: 4, rotate: "on", hadamard: "down" }],
    ["qwen3", { wbits: 3, normFull: true }],
    ["qwen3-biases", { wbits: 4, abits: 4, polish: 2, keep: ["*.0.self_attn.q_proj"] }],
    ["mistral", { wbits: 3, normFull: true, polish: 1 }],
  ] as const)("leave %s what it computes: %o", async (name, options) => {
    const { out, run, calib } = await runOn(name, { ...options });
    for (const { equivalence, equivalent } of run.result.blocks) {
      expect(equivalent).toBe(true);
      expect(equivalence).toBeLessThan(1e-5);
    }
    const packed = path.join(tempFolder(), "packed");
    await exportRun({ run: out, format: "aq", out: packed });
    expect(await pplOf(packed, calib)).toBe(await pplOf(out, calib));
    await expectGreedy(packed);
  });

  it("are refused where the published recipes know no such norms", async () => {
    const { model, calib } = withTokenizer(tempFolder(), "qwen3");
    await expectAqRejection(
      smallRun({ model, calib, out: tempFolder(), recipe: "paper-w4a4", abits: 4 }),
      "AQ_MODEL",
      "norms behind q and k",
      "--recipe default",
    );
  });
});

describe("a window of attention", () => {
  it("bounds sequences, and says so", async () => {
    const { model, calib } = withTokenizer(tempFolder(), "mistral-window");
    expect(inspect({ model })).toMatchObject({ maxTokens: 40, slidingWindow: 40 });
    const evaluated = evaluate({ model, text: calib, seqlen: 41 });
    await expectAqRejection(evaluated, "AQ_ARG", "41", "40 tokens (the window of its attention)");
    await expectAqRejection(load(model, { maxLength: 64 }), "AQ_ARG", "64", "40", "window");
  });
});
