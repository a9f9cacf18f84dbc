// Exports of real runs: what lies in the folder, who may be replaced, and what a damaged run says.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { gguf } from "@huggingface/gguf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { main } from "../lib/cli/main.ts";
import { exportRun } from "../lib/export-run.ts";
import type { ExportEvent } from "../lib/export-types.ts";
import { quantizeToFormats } from "../lib/run-formats.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { fakeIo } from "./helpers/fake-io.ts";
import { firstBlocks, OPT } from "./helpers/fixture.ts";
import { filesBelow, readJson, SMALL } from "./helpers/small-run.ts";
import { numbersOf, readTensors, tensorNamed } from "./helpers/tensor-file.ts";

let temp = "";
let source = "";
let run = "";
let opt = "";

const RTN = { ...SMALL, recipe: "rtn", groupSize: 64 } as const;

function quantized(options: Partial<QuantizeOptions> & { out: string }): Promise<unknown> {
  return quantizeToFormats({ ...RTN, model: source, ...options }, {});
}

beforeAll(async () => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  source = path.join(temp, "source");
  fs.mkdirSync(source);
  firstBlocks(source, 2);
  run = path.join(temp, "run");
  opt = path.join(temp, "opt");
  await quantized({ out: run });
  await quantized({ out: opt, model: OPT, wbits: 3, groupSize: 0 });
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

/** A copy of the run that a test may damage. */
function copyOf(dir: string): string {
  const copy = fs.mkdtempSync(path.join(temp, "copy-"));
  fs.cpSync(dir, copy, { recursive: true });
  return copy;
}

const fresh = (): string => path.join(fs.mkdtempSync(path.join(temp, "out-")), "model");

describe("an export", () => {
  it("has the model's companions, its own config.json and a record, and nothing half written", async () => {
    const out = fresh();
    const tensors: string[] = [];
    const onEvent = (event: ExportEvent): void => void tensors.push(event.tensor);
    const result = await exportRun({ run, format: "awq", out }, { onEvent });
    expect(filesBelow(out)).toEqual([
      "aq_export.json",
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    expect(result).toMatchObject({ format: "awq", out, files: filesBelow(out) });
    expect(result.bytes).toBe(
      filesBelow(out).reduce((sum, file) => sum + fs.statSync(path.join(out, file)).size, 0),
    );
    expect(tensors).toContain("model.layers.1.mlp.down_proj.qweight");
    for (const file of ["tokenizer.json", "generation_config.json"]) {
      const [a, b] = [source, out].map((dir) => fs.readFileSync(path.join(dir, file), "utf8"));
      expect(b).toBe(a);
    }
    expect(fs.readdirSync(path.dirname(out))).toEqual(["model"]);
    const job = readJson(run, "aq", "job.json") as { finished: { sha256: string }[] };
    expect(readJson(out, "aq_export.json")).toMatchObject({
      run: { blocks: job.finished.map(({ sha256 }) => sha256) },
      setting: { wbits: 4, abits: 16, group_size: 64, symmetric: false, recipe: "rtn" },
    });
  });

  it("as hf is the run's own output, byte for byte, from the codes", async () => {
    const out = fresh();
    await exportRun({ run, format: "hf", out });
    const files = filesBelow(out).filter((file) => file !== "aq_export.json");
    expect(files).toEqual(filesBelow(run).filter((file) => !file.startsWith("aq/")));
    for (const file of files) {
      const [a, b] = [run, out].map((dir) => fs.readFileSync(path.join(dir, file)));
      expect(b?.equals(a as Buffer), file).toBe(true);
    }
  });

  it("as gguf opens in the hub's parser with all 4096 tokens", async () => {
    const out = fresh();
    const { change } = await exportRun({ run, target: "llama.cpp", out });
    expect(change.rms).toBeGreaterThan(0);
    expect(change.max).toBeLessThan(1e-3);
    const file = path.join(out, "model.gguf");
    const { metadata, tensorInfos } = await gguf(file, { allowLocalFile: true });
    const said = metadata as unknown as Record<string, unknown>;
    expect(said["tokenizer.ggml.tokens"]).toHaveLength(4096);
    expect(said["tokenizer.ggml.pre"]).toBe("gpt-2");
    expect(tensorInfos).toHaveLength(2 * 9 + 2);
  });

  it("of OPT goes into gptq_v2 and compressed-tensors with its biases, and not into gguf", async () => {
    for (const format of ["gptq_v2", "compressed-tensors", "aq"] as const) {
      const out = fresh();
      const { verified } = await exportRun({ run: opt, format, out });
      expect(verified.linears).toBe(24);
      const tensors = readTensors(path.join(out, "model.safetensors"));
      expect(tensorNamed(tensors, "model.decoder.layers.0.fc1.bias").shape).toEqual([1024]);
      // Numbers are spelled as in the model's own file: typed readers want their floats.
      const config = fs.readFileSync(path.join(out, "config.json"), "utf8");
      expect(config).toContain('"attention_dropout": 0.0');
    }
    const gguf = exportRun({ run: opt, format: "gguf", out: fresh() });
    await expectAqRejection(gguf, "AQ_MODEL", "no OPT", "awq");
  });

  it("carries run-time matrices in compressed-tensors' transform_config", async () => {
    const full = path.join(temp, "full");
    await quantized({ out: full, recipe: "affine", normFull: true });
    const out = fresh();
    const result = await exportRun({ run: full, format: "compressed-tensors", out });
    expect(result.verified.linears).toBe(14);
    expect(result.notes.join()).toContain("experimental");
    const config = readJson(out, "config.json");
    expect(config).toMatchObject({ model_type: "llama", architectures: ["LlamaForCausalLM"] });
    const { transform_config: transforms } = config["quantization_config"] as {
      transform_config: { config_groups: Record<string, { apply: { targets: string[] }[] }> };
    };
    expect(Object.keys(transforms.config_groups)).toHaveLength(4);
    expect(transforms.config_groups["aq_1_norm1"]?.apply[0]?.targets).toHaveLength(3);
    const stored = numbersOf(
      tensorNamed(
        readTensors(path.join(out, "model.safetensors")),
        "model.layers.1.self_attn.k_proj.aq_1_norm1_input.weight",
      ),
    );
    const block = readTensors(path.join(full, "aq", "blocks", "block-0001.safetensors"));
    const residue = numbersOf(tensorNamed(block, "model.layers.1.input_layernorm.residue"));
    // x M / sqrt(n) is x Rt: M = sqrt(n) Rt, here with n = 256.
    for (const [i, j] of [
      [0, 0],
      [3, 7],
      [200, 100],
    ] as const) {
      expect(stored[i * 256 + j]).toBeCloseTo(16 * (residue[j * 256 + i] as number), 2);
    }
    await exportRun({ run: full, format: "aq", out: fresh() });
  });
});

describe("a place that holds something", () => {
  it("is refused, and with overwrite replaced if an export wrote it", async () => {
    const out = fresh();
    await exportRun({ run, format: "awq", out });
    const again = exportRun({ run, format: "gptq_v2", out });
    await expectAqRejection(again, "AQ_ARG", out, "not empty", "--overwrite");
    await exportRun({ run, format: "gguf", out, overwrite: true });
    expect(filesBelow(out)).toEqual(["aq_export.json", "model.gguf"]);
    expect(fs.readdirSync(path.dirname(out))).toEqual(["model"]);
  });

  it("is never replaced if something else is in it", async () => {
    const out = fresh();
    fs.mkdirSync(out);
    fs.writeFileSync(path.join(out, "thesis.tex"), "mine");
    const refused = exportRun({ run, format: "awq", out, overwrite: true });
    await expectAqRejection(refused, "AQ_ARG", "thesis.tex", "not replaced");
    const itself = exportRun({ run, format: "awq", out: run, overwrite: true });
    await expectAqRejection(itself, "AQ_ARG", '"aq"');
    expect(filesBelow(out)).toEqual(["thesis.tex"]);
  });

  it("is written by one export at a time", async () => {
    const out = fresh();
    const first = exportRun({ run, format: "awq", out });
    await expectAqRejection(exportRun({ run, format: "gguf", out }), "AQ_ARG", "Another export");
    expect((await first).format).toBe("awq");
  });

  it("loses what killed exports left beside it, and gets back what they moved aside", async () => {
    const out = fresh();
    await exportRun({ run, format: "awq", out });
    // No process has these numbers.
    const beside = (kind: string): string =>
      path.join(path.dirname(out), `.model.${kind}-${2 ** 22 + 1}`);
    fs.renameSync(out, beside("old"));
    fs.mkdirSync(beside("staging"));
    const refused = exportRun({ run, format: "gguf", out });
    await expectAqRejection(refused, "AQ_ARG", "not empty");
    expect(fs.readdirSync(path.dirname(out))).toEqual(["model"]);
    expect(filesBelow(out)).toContain("model.safetensors");
  });

  it("is as it was when the export is stopped, and nothing is left beside it", async () => {
    const out = fresh();
    const stop = new AbortController();
    let seen = 0;
    const onEvent = (): void => {
      if (++seen === 5) stop.abort();
    };
    const stopped = exportRun({ run, format: "awq", out }, { onEvent, signal: stop.signal });
    await expectAqRejection(stopped, "AQ_STOPPED", out);
    expect(fs.readdirSync(path.dirname(out))).toEqual([]);
  });
});

describe("a run that is not whole", () => {
  const block = (dir: string, i: number): string =>
    path.join(dir, "aq", "blocks", `block-000${i}.safetensors`);

  it.each<[string, (dir: string) => void, string[]]>([
    ["a missing block", (dir) => fs.rmSync(block(dir, 1)), ["block-0001", "is missing"]],
    [
      "a truncated block",
      (dir) => fs.truncateSync(block(dir, 0), 1000),
      ["block-0000", "changed or cut"],
    ],
    ["no run", (dir) => fs.rmSync(path.join(dir, "aq"), { recursive: true }), ["holds no run"]],
    ["no checkpoint", (dir) => fs.rmSync(path.join(dir, "config.json")), ["config.json"]],
    ["no aq_config.json", (dir) => fs.rmSync(path.join(dir, "aq_config.json")), ["is missing"]],
    [
      "a cut job.json",
      (dir) => fs.truncateSync(path.join(dir, "aq", "job.json"), 50),
      ["job.json"],
    ],
    [
      "an unfinished one",
      (dir) => {
        const file = path.join(dir, "aq", "job.json");
        const job = readJson(file);
        fs.writeFileSync(file, JSON.stringify({ ...job, status: "running", result: null }));
      },
      ["not finished", "2 of 2 blocks"],
    ],
  ])("(%s) is one clear sentence and exit 1", async (_, damage, parts) => {
    const dir = copyOf(run);
    damage(dir);
    const out = fresh();
    const io = fakeIo();
    const code = await main(["export", "--run", dir, "--format", "awq", "--out", out], io);
    expect(code).toBe(1);
    expect(io.stderr.text).toMatch(/^aq-native: [^\n]+\n$/);
    for (const part of parts) expect(io.stderr.text).toContain(part);
    expect(fs.readdirSync(path.dirname(out))).toEqual([]);
  });
});

describe("the command", () => {
  it("says what it wrote, what that changed, and what comes next", async () => {
    const out = fresh();
    const io = fakeIo();
    expect(await main(["export", "--run", run, "--target", "vllm", "--out", out], io)).toBe(0);
    expect(io.stdout.text).toContain(`written to  ${out}  (awq, 6 files, `);
    expect(io.stdout.text).toContain("weights     as calibrated, bit for bit");
    expect(io.stdout.text).toContain("read back   the same as the run: 14 linears");
    expect(io.stdout.text).toContain(`next        vllm serve ${out}`);
    const verified = fakeIo();
    expect(await main(["verify", out, "--run", run], verified)).toBe(0);
    expect(verified.stdout.text).toContain("awq: the same as the run");
  });

  it("with --json ends with the result", async () => {
    const out = fresh();
    const io = fakeIo();
    const words = ["export", "--run", run, "--format", "gguf", "--out", out, "--json"];
    expect(await main(words, io)).toBe(0);
    const last = JSON.parse(io.stdout.text.trim().split("\n").at(-1) ?? "") as object;
    expect(last).toMatchObject({ event: "done", format: "gguf", out, files: expect.any(Array) });
  });

  it.each([
    ["neither of the two", [], "neither '--format <name>' nor '--target <name>'"],
    ["both", ["--format", "awq", "--target", "vllm"], "exclude each other"],
    ["a misspelt format", ["--format", "gptqv2"], "Did you mean gptq_v2?"],
    ["a misspelt target", ["--target", "vlm"], "Did you mean vllm?"],
  ])("given %s is wrong use", async (_, words, part) => {
    const io = fakeIo();
    expect(await main(["export", "--run", run, "--out", "x", ...words], io)).toBe(2);
    expect(io.stderr.text).toContain(part);
  });
});
