// The published recipes and --norm-full as whole runs: what is refused, what is written, and that a
// folder with matrices of the run time is measured with them and read by nobody else.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { resolveSettings, settingsFor } from "../lib/calibration/settings.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { RunState } from "../lib/export/run-state.ts";
import { evaluate, inspect, quantize } from "../lib/index.ts";
import { opt } from "../lib/models/opt.ts";
import { quantizeWeight } from "../lib/quant/integers.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, TRAINED } from "./helpers/fixture.ts";
import { readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { tinyModel } from "./helpers/tiny-block.ts";

const OPT = path.join("test", "fixtures", "opt-5m");
const tempFolder = tempFolders();

/** The trained model with a key/value head for every query head, and its first block alone. */
function withAllHeads(target: string): string {
  return copyFixture(TRAINED, target, {
    config: (config) => ({
      ...config,
      num_hidden_layers: 1,
      num_key_value_heads: config["num_attention_heads"],
    }),
    tensors: (tensors) => {
      for (const [name, tensor] of [...tensors]) {
        if (/\.layers\.[1-9]/.test(name)) tensors.delete(name);
        else if (/\.[kv]_proj\./.test(name)) {
          const [rows = 0, columns = 0] = tensor.shape;
          const head = tensor.bytes.length / 4;
          const heads = [0, 1, 2, 3].map((h) => tensor.bytes.subarray(h * head, (h + 1) * head));
          tensors.set(name, {
            ...tensor,
            shape: [2 * rows, columns],
            bytes: Buffer.concat(heads.flatMap((bytes) => [bytes, bytes])),
          });
        }
      }
    },
  });
}

const settings = (options: Partial<QuantizeOptions>) =>
  resolveSettings({ model: "m", out: "o", ...options });

describe("the published recipes' settings", () => {
  it("depend on the family", () => {
    const mha = tinyModel({ num_key_value_heads: 4 });
    const optModel = opt.open(
      {
        hidden_size: 8,
        num_attention_heads: 2,
        ffn_dim: 12,
        num_hidden_layers: 1,
        vocab_size: 16,
      },
      () => true,
    );
    const both = (options: Partial<QuantizeOptions>) =>
      [mha, optModel].map((model) => settingsFor(model, settings(options), options));
    const sf = (options: Partial<QuantizeOptions>) => both(options).map(({ train }) => train.sf);
    expect(sf({ recipe: "paper-weight-only" })).toEqual([1e-2, 1]);
    expect(sf({ recipe: "paper-weight-only", sf: 0.5 })).toEqual([0.5, 0.5]);
    expect(sf({ recipe: "paper-w4a4" })).toEqual([0.1, 0.1]);
    const [onLlama, onOpt] = both({ recipe: "paper-w4a4", abits: 4 });
    expect(onLlama?.scheme).toMatchObject({ grids: "published" });
    expect(onLlama?.scheme.heads).toBeUndefined();
    expect(onOpt?.scheme).toMatchObject({ grids: "published", heads: "together" });
    expect(onOpt?.rotate).toBe(false);
  });

  it("refuse grouped-query models with the reason", async () => {
    const grouped = tinyModel();
    const asked = settings({ recipe: "paper-w4a4" });
    expectAqError(() => settingsFor(grouped, asked, {}), "AQ_MODEL", "grouped-query", "2 for 4");
    const options = { model: TRAINED, calib: BOOKS, out: tempFolder(), device: "cpu" } as const;
    await expectAqRejection(
      quantize({ ...options, recipe: "paper-weight-only" }),
      "AQ_MODEL",
      "grouped-query",
    );
    expect(settingsFor(grouped, settings({ normFull: true }), {}).recipe.transforms.norms).toBe(
      "full",
    );
  });
});

describe("paper-weight-only on OPT", () => {
  it("writes matrices of the run time that eval applies and nobody else reads", async () => {
    const out = tempFolder();
    const recipe = "paper-weight-only";
    const { result, notes } = await smallRun({ model: OPT, out, recipe, wbits: 3 });
    for (const { equivalence, equivalent } of result.blocks) {
      expect(equivalent).toBe(true);
      expect(equivalence).toBeLessThan(1e-5);
    }
    expect(notes.join()).toContain("8 matrices of 256 x 256");

    const config = readJson(out, "config.json");
    expect(config["model_type"]).toBe("aq_opt");
    expect(config).not.toHaveProperty("architectures");
    const aq = readJson(out, "aq_config.json");
    expect(aq).toMatchObject({ grids: "published", run_time: ["norm1.residue", "norm2.residue"] });
    const checkpoint = openCheckpoint(out);
    const { shape } = checkpoint.info("model.decoder.layers.3.final_layer_norm.residue");
    checkpoint.close();
    expect(shape).toEqual([256, 256]);

    const { bits } = readJson(out, "aq", "report.json") as {
      bits: { bitsPerWeight: number; total: { bitsPerWeight: number }; runtime: object[] };
    };
    expect(bits.runtime).toEqual([
      { name: "norm1.residue", parameters: 4 * 256 ** 2, bits: 16 * 4 * 256 ** 2 },
      { name: "norm2.residue", parameters: 4 * 256 ** 2, bits: 16 * 4 * 256 ** 2 },
    ]);
    // 2 C^2 numbers of 16 bits beside 12 C^2 weights: 8/3 of a bit, as the specification counts.
    expect(bits.bitsPerWeight - bits.total.bitsPerWeight).toBeCloseTo(8 / 3, 6);

    const options = { model: out, text: BOOKS, seqlen: 64, windows: 4, device: "cpu" } as const;
    const { ppl } = await evaluate(options);
    expect(ppl).toBeLessThan(100);
    expect(inspect({ model: out })).toMatchObject({ family: "opt", blocks: 4 });
    fs.rmSync(path.join(out, "aq_config.json"));
    await expectAqRejection(evaluate(options), "AQ_FORMAT", "aq_config.json");
  });
});

describe("paper-w4a4 on LLaMA", () => {
  it("says that it is not equivalent, goes on, and is read back with its biases", async () => {
    const model = withAllHeads(tempFolder());
    const out = tempFolder();
    const run = { model, out, recipe: "paper-w4a4", abits: 4, letLr: 0.05, epochs: 3 } as const;
    const { result, notes } = await smallRun(run);
    const [block] = result.blocks;
    expect(block?.equivalent).toBe(false);
    expect(block?.equivalence).toBeGreaterThan(1e-3);
    expect(notes.join()).toContain("rotary");
    expect(readJson(out, "config.json")["model_type"]).toBe("aq_llama");
    expect(readJson(out, "aq_config.json")["added"]).toContain("norm1.beta");
    expect(Number.isFinite(result.pplAfter)).toBe(true);

    // The run folder holds them too: a finished run answers, an unfinished one goes on.
    const again = await smallRun(run);
    expect(again.result.pplAfter).toBe(result.pplAfter);
  });
});

describe("a full matrix behind the norms", () => {
  it("adds to the default recipe, also on a grouped-query model", async () => {
    const out = tempFolder();
    const { result } = await smallRun({ out, recipe: "affine", normFull: true });
    for (const { equivalence, dominanceMargin } of result.blocks) {
      expect(equivalence).toBeLessThan(1e-5);
      expect(dominanceMargin).toBeGreaterThanOrEqual(0.1 - 1e-6);
    }
    expect(readJson(out, "config.json")["model_type"]).toBe("aq_llama");
    const learned = readJson(out, "aq_config.json")["sites"];
    expect(learned).toContain("norm-full.norm1");
    expect(inspect({ model: out }).sites.map(({ site }) => site)).toEqual(learned);
  });
});

describe("a stored block", () => {
  it("keeps zero points that are no codes", () => {
    scope(() => {
      const model = tinyModel();
      const scheme = { wbits: 4, abits: 16, groupSize: 0, symmetric: false, grids: "published" };
      const quantized = Object.fromEntries(
        model.linears.map(({ key, out, in: columns }) => {
          const data = Float32Array.from({ length: out * columns }, (_, i) => 10 + (i % 3));
          const w = Tensor.from(data, [out, columns]);
          return [key, quantizeWeight(w, undefined, { ...scheme, grids: "published" })];
        }),
      );
      const others = Object.fromEntries(
        model
          .blockTensors(0)
          .filter(({ key }) => !(key in quantized))
          .map(({ key, shape }) => [key, Tensor.from(new Float32Array(shape[0] ?? 0))]),
      );
      const run = new RunState(tempFolder());
      run.writeBlock(0, model, { quantized, others }, {});
      const file = run.openBlock(0);
      const back = file.load(0, model, 0);
      file.close();
      for (const { key } of model.linears) {
        const zeros = back.quantized[key]?.zero?.floats() ?? [];
        expect([...zeros].every((z) => z < 0)).toBe(true);
        expect(zeros).toEqual(quantized[key]?.zero.floats());
      }
    });
  });
});
