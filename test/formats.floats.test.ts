// 4-bit floats in every format that carries them: each byte where the layouts say, the linears that are not
// quantized beside them, and verify, which finds out every bit that is another.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import type { FormatName } from "../lib/export-types.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { verify } from "../lib/verify.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { type Exported, exporter, type Wish } from "./helpers/exported.ts";
import { expectFlipsFound } from "./helpers/flips.ts";
import { F16, halfToBits } from "./helpers/half.ts";
import { readJson } from "./helpers/small-run.ts";
import { floatMatrix, type SyntheticFloats } from "./helpers/synthetic-floats.ts";
import type { SyntheticLinear } from "./helpers/synthetic-run.ts";
import { tensorNamed } from "./helpers/tensor-file.ts";

const written = exporter();

/** Where a layout has the parts of a linear. */
interface Names {
  readonly codes: string;
  readonly scales: string;
  readonly global: string;
  readonly input: string;
}

const COMPRESSED = (weight: string): Names => ({
  codes: weight.replace(/weight$/, "weight_packed"),
  scales: weight.replace(/weight$/, "weight_scale"),
  global: weight.replace(/weight$/, "weight_global_scale"),
  input: weight.replace(/weight$/, "input_global_scale"),
});
const MODELOPT = (weight: string): Names => ({
  codes: weight,
  scales: weight.replace(/weight$/, "weight_scale"),
  global: weight.replace(/weight$/, "weight_scale_2"),
  input: weight.replace(/weight$/, "input_scale"),
});
const OWN = (weight: string): Names => ({
  codes: `${weight}.codes`,
  scales: `${weight}.scale`,
  global: `${weight}.global`,
  input: `${weight}.input`,
});

const LAYOUTS = {
  "compressed-tensors": { names: COMPRESSED, scales: "F8_E4M3", single: [1], inverse: false },
  modelopt: { names: MODELOPT, scales: "F8_E4M3", single: [], inverse: true },
  aq: { names: OWN, scales: "U8", single: [1], inverse: false },
} as const;

/** The parts of a linear in the file, against the run. */
function expectLinear(
  { tensors }: Exported,
  { name, rows, columns, groups, floats }: SyntheticLinear,
  format: keyof typeof LAYOUTS,
): void {
  const layout = LAYOUTS[format];
  const { codes, scaleBytes, global, input, numbers } = floats as SyntheticFloats;
  const names = layout.names(name);
  const packed = tensorNamed(tensors, names.codes);
  expect([packed.dtype, packed.shape]).toEqual(["U8", [rows, columns / 2]]);
  for (const [at, byte] of packed.bytes.entries()) {
    expect([byte & 15, byte >> 4]).toEqual([codes[2 * at], codes[2 * at + 1]]);
  }
  const scales = tensorNamed(tensors, names.scales);
  const type = numbers === "nvfp4" ? layout.scales : "U8";
  expect([scales.dtype, scales.shape]).toEqual([type, [rows, groups]]);
  expect(Buffer.from(scales.bytes).equals(scaleBytes)).toBe(true);
  const hasInput = input !== null && format !== "aq";
  expect([tensors.has(names.global), tensors.has(names.input)]).toEqual([
    numbers === "nvfp4",
    hasInput,
  ]);
  for (const [part, value] of [
    [names.global, global],
    [names.input, hasInput ? input : null],
  ] as const) {
    if (value === null) continue;
    const { dtype, shape, bytes } = tensorNamed(tensors, part);
    expect([dtype, shape]).toEqual(["F32", layout.single]);
    const stored = new Float32Array(Uint8Array.from(bytes).buffer)[0];
    expect(stored).toBe(layout.inverse ? Math.fround(1 / value) : value);
  }
}

const SCHEMES: readonly [string, Wish, readonly FormatName[]][] = [
  ["NVFP4A16", { numbers: "nvfp4" }, ["compressed-tensors", "modelopt", "aq", "gguf-f16", "hf"]],
  ["NVFP4", { numbers: "nvfp4", abits: 4 }, ["compressed-tensors", "modelopt", "aq"]],
  ["MXFP4A16", { numbers: "mxfp4" }, ["compressed-tensors", "aq"]],
  ["MXFP4", { numbers: "mxfp4", abits: 4 }, ["compressed-tensors", "aq", "gguf-f16"]],
];

describe.each(SCHEMES)("%s", (_, wish, formats) => {
  it.each(formats)(
    "in %s is the run's, bit for bit, and a flipped bit is found",
    async (format) => {
      const exported = await written(wish, format);
      if (format in LAYOUTS) {
        for (const linear of exported.run.linears) {
          expectLinear(exported, linear, format as keyof typeof LAYOUTS);
        }
        expect(exported.tensors.size).toBe(
          exported.run.outer.size +
            exported.run.plain.size +
            exported.run.linears.length * partsOf(wish, format),
        );
      }
      await expectFlipsFound(exported.out, exported.run.dir);
    },
    60_000,
  );
});

/** Tensors of a linear. */
function partsOf({ numbers, abits }: Wish, format: FormatName): number {
  if (numbers === "mxfp4") return 2;
  return abits === 4 && format !== "aq" ? 4 : 3;
}

describe("what the folder says", () => {
  const args = { num_bits: 4, type: "float", symmetric: true };

  it.each([4, 16])("of NVFP4 in compressed-tensors (activations: %i bits)", async (abits) => {
    const { out } = await written({ numbers: "nvfp4", abits }, "compressed-tensors");
    const own = {
      ...args,
      strategy: "tensor_group",
      group_size: 16,
      scale_dtype: "torch.float8_e4m3fn",
    };
    expect(readJson(out, "config.json")).toMatchObject({
      torch_dtype: "float16",
      quantization_config: {
        quant_method: "compressed-tensors",
        format: "nvfp4-pack-quantized",
        quantization_status: "compressed",
        ignore: ["lm_head"],
        config_groups: {
          group_0: {
            targets: ["Linear"],
            weights: { ...own, dynamic: false },
            input_activations:
              abits === 4 ? { ...own, dynamic: "local", observer: "static_minmax" } : null,
          },
        },
      },
    });
  });

  it("of MXFP4 in compressed-tensors", async () => {
    const { out } = await written({ numbers: "mxfp4", abits: 4 }, "compressed-tensors");
    const own = { ...args, strategy: "group", group_size: 32, scale_dtype: "torch.uint8" };
    expect(readJson(out, "config.json")).toMatchObject({
      quantization_config: {
        format: "mxfp4-pack-quantized",
        config_groups: {
          group_0: {
            weights: { ...own, dynamic: false },
            input_activations: { ...own, dynamic: true },
          },
        },
      },
    });
  });

  it.each([
    [4, "NVFP4"],
    [16, "W4A16_NVFP4"],
  ])("in ModelOpt's two files (activations: %i bits)", async (abits, algorithm) => {
    const { out } = await written({ numbers: "nvfp4", abits, kept: ["o_proj"] }, "modelopt");
    const excluded = [
      "lm_head",
      "model.layers.0.self_attn.o_proj",
      "model.layers.1.self_attn.o_proj",
    ];
    expect(readJson(out, "hf_quant_config.json")).toMatchObject({
      producer: { name: "aq-native" },
      quantization: {
        quant_algo: algorithm,
        kv_cache_quant_algo: null,
        group_size: 16,
        exclude_modules: excluded,
      },
    });
    const { quantization_config: config } = readJson(out, "config.json");
    expect(config).toMatchObject({
      quant_method: "modelopt",
      quant_algo: algorithm,
      ignore: excluded,
      config_groups: { group_0: { weights: { num_bits: 4, type: "float", group_size: 16 } } },
    });
    expect(JSON.stringify(config).includes("input_activations")).toBe(abits === 4);
  });

  it("alone is enough where an older exporter left config.json as it was", async () => {
    const { out } = await written({ numbers: "nvfp4", abits: 4 }, "modelopt");
    const { quantization_config: _, ...rest } = readJson(out, "config.json");
    fs.writeFileSync(path.join(out, "config.json"), JSON.stringify(rest));
    const source = openLanguageModel(out, "cpu");
    try {
      expect(source.activations).toMatchObject({ bits: 4 });
    } finally {
      source.close();
    }
  });

  it("is wrong when it is another scheme's", async () => {
    const { out, run } = await written({ numbers: "nvfp4", abits: 4 }, "compressed-tensors");
    const file = path.join(out, "config.json");
    const text = fs.readFileSync(file, "utf8");
    const json = readJson(file) as {
      quantization_config: { config_groups: { group_0: Record<string, unknown> } };
    };
    json.quantization_config.config_groups.group_0["input_activations"] = null;
    fs.writeFileSync(file, JSON.stringify(json));
    const act = verify({ dir: out, run: run.dir });
    await expectAqRejection(act, "AQ_FORMAT", "activations in 4 bits", "activations in 16 bits");
    fs.writeFileSync(file, text);
    await verify({ dir: out, run: run.dir });
  });
});

describe("the numbers that they stand for", () => {
  it.each(["nvfp4", "mxfp4"] as const)("%s: in hf value (scale / g), rounded", async (numbers) => {
    const { run, tensors } = await written({ numbers }, "hf");
    for (const { name, columns, floats } of run.linears) {
      const expected = floatMatrix(floats as SyntheticFloats, columns);
      const bits = Uint16Array.from(expected, (x) => halfToBits(x, F16));
      const stored = new Uint16Array(Uint8Array.from(tensorNamed(tensors, name).bytes).buffer);
      // The helper has no sign for what is too small for float16.
      const isZero = (x: number): boolean => (x & 0x7fff) === 0;
      const same = stored.every((x, i) => x === bits[i] || (isZero(x) && bits[i] === 0));
      expect(same, name).toBe(true);
    }
  });
});
