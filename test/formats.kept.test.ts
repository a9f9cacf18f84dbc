// Linears that a run keeps as they are: plain tensors in every format, named by its description.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import type { FormatName } from "../lib/export-types.ts";
import { verify } from "../lib/verify.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { type Exported, exporter, type Wish } from "./helpers/exported.ts";
import { expectFlipsFound } from "./helpers/flips.ts";
import { BF16, F16, halfToBits } from "./helpers/half.ts";
import { readJson } from "./helpers/small-run.ts";
import { tensorNamed } from "./helpers/tensor-file.ts";

const written = exporter();

describe("linears that are not quantized", () => {
  const kept = ["q_proj", "k_proj", "v_proj", "down_proj"];
  const KEPT = [0, 1].flatMap((i) => [
    ...["q", "k", "v"].map((key) => `model.layers.${i}.self_attn.${key}_proj`),
    `model.layers.${i}.mlp.down_proj`,
  ]);

  /** The stored numbers are the run's, rounded to the type they are stored in. */
  function expectPlain({ run, tensors }: Exported, dtype: "F16" | "BF16"): void {
    for (const prefix of KEPT) {
      const stored = tensorNamed(tensors, `${prefix}.weight`);
      const numbers = run.plain.get(`${prefix}.weight`) as Float32Array;
      const bits = Uint16Array.from(numbers, (x) => halfToBits(x, dtype === "F16" ? F16 : BF16));
      expect(stored.dtype).toBe(dtype);
      expect(Buffer.from(stored.bytes).equals(Buffer.from(bits.buffer)), prefix).toBe(true);
    }
  }

  const wanted: readonly [FormatName, Wish][] = [
    ["compressed-tensors", { numbers: "nvfp4", abits: 4 }],
    ["compressed-tensors", { numbers: "mxfp4" }],
    ["modelopt", { numbers: "nvfp4" }],
    ["aq", { numbers: "nvfp4" }],
    ["compressed-tensors", { groupSize: 32 }],
    ["awq", { groupSize: 32 }],
    ["gptq", { groupSize: 32, symmetric: true }],
    ["gptq_v2", { groupSize: 32 }],
    ["aq", { groupSize: 32 }],
  ];

  it.each(wanted)(
    "lie in %s as they are, and a flipped bit is found (%j)",
    async (format, wish) => {
      const exported = await written({ ...wish, kept }, format);
      expectPlain(exported, "F16");
      const { quantization_config: config } = readJson(exported.out, "config.json");
      const said = { ...(config as Record<string, unknown>) };
      const list = said["ignore"] ?? said["modules_to_not_convert"];
      if (format === "gptq" || format === "gptq_v2") {
        const rules = Object.keys(said["dynamic"] as object);
        // vLLM's names of linears that it runs as one are there as well.
        for (const name of [...KEPT, "model.layers.0.self_attn.qkv_proj"]) {
          expect(rules.some((rule) => new RegExp(rule.replace(/^-:/, "")).test(name))).toBe(true);
        }
        expect(rules.some((rule) => rule.includes("gate"))).toBe(false);
        expect(rules.every((rule) => rule.startsWith("-:^"))).toBe(true);
      } else if (format !== "aq") {
        expect(list).toEqual(["lm_head", ...KEPT]);
      }
      await expectFlipsFound(exported.out, exported.run.dir);
    },
    60_000,
  );

  it.each<[FormatName, Wish, string]>([
    ["compressed-tensors", { numbers: "nvfp4" }, "ignore"],
    ["awq", { groupSize: 32 }, "modules_to_not_convert"],
    ["gptq_v2", { groupSize: 32 }, "dynamic"],
  ])("must be named by %s", async (format, wish, key) => {
    const { out, run } = await written({ ...wish, kept }, format);
    const file = path.join(out, "config.json");
    const json = readJson(file) as { quantization_config: Record<string, unknown> };
    const { [key]: _, ...rest } = json.quantization_config;
    fs.writeFileSync(file, JSON.stringify({ ...json, quantization_config: rest }));
    const act = verify({ dir: out, run: run.dir });
    await expectAqRejection(act, "AQ_FORMAT", out, "self_attn.q_proj left out");
  });

  it.each<[FormatName, Wish]>([
    ["gguf", { groupSize: 32, kept }],
    ["gguf-f16", { numbers: "nvfp4", kept }],
  ])(
    "lie in %s as rows of F16",
    async (format, wish) => {
      const { out, run } = await written(wish, format);
      const { folders } = await verify({ dir: out, run: run.dir });
      expect(folders[0]?.linears).toBe(run.linears.length);
      await expectFlipsFound(out, run.dir);
    },
    60_000,
  );

  it("keep the model's own type beside 4-bit floats", async () => {
    const wish = { bfloat16: true, config: { torch_dtype: "bfloat16" }, kept };
    const exported = await written({ numbers: "nvfp4", ...wish }, "compressed-tensors");
    expectPlain(exported, "BF16");
    const { run, tensors, out } = exported;
    for (const [name, { bytes }] of run.outer) {
      expect(Buffer.from(tensorNamed(tensors, name).bytes).equals(bytes)).toBe(true);
    }
    expect(readJson(out, "config.json")).toMatchObject({ torch_dtype: "bfloat16" });
  });
});
