// The packed folders against the run that they were written from: every code, scale and zero point, for
// all widths and grids, read bit by bit as the layouts say.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exportRun } from "../lib/export-run.ts";
import type { FormatName } from "../lib/export-types.ts";
import { ChangeMeter } from "../lib/formats/change.ts";
import { shortsOf } from "../lib/formats/plain.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { F16, halfToBits } from "./helpers/half.ts";
import {
  awqReader,
  compressedReader,
  expectSame,
  gptqReader,
  ownReader,
} from "./helpers/packed-layouts.ts";
import { readJson } from "./helpers/small-run.ts";
import {
  SMALL_SHAPE,
  type SyntheticRun,
  type SyntheticSettings,
  syntheticRun,
} from "./helpers/synthetic-run.ts";
import { numbersOf, readTensors, type StoredTensor, tensorNamed } from "./helpers/tensor-file.ts";
import { wordsOf } from "./helpers/unpack.ts";

let temp = "";
let count = 0;

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

interface Exported {
  readonly run: SyntheticRun;
  readonly out: string;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

async function written(settings: SyntheticSettings, format: FormatName): Promise<Exported> {
  const [dir, out] = [path.join(temp, `run-${count}`), path.join(temp, `out-${count++}`)];
  const run = syntheticRun(dir, settings);
  const result = await exportRun({ run: dir, format, out });
  expect(result.change).toEqual({ max: 0, rms: 0 });
  expect(result.verified.linears).toBe(run.linears.length);
  return { run, out, tensors: readTensors(path.join(out, "model.safetensors")) };
}

const EVERY = { ...SMALL_SHAPE, seed: 5 };

describe.each([2, 3, 4, 8])("at %i bits", (bits) => {
  it.each([true, false])("gptq_v2 holds what the run holds (symmetric: %s)", async (symmetric) => {
    const { run, tensors, out } = await written({ ...EVERY, bits, symmetric }, "gptq_v2");
    for (const linear of run.linears) expectSame(linear, gptqReader(tensors, linear, bits, 0));
    const config = readJson(out, "quantize_config.json");
    expect(config).toMatchObject({ bits, group_size: 32, sym: symmetric, desc_act: false });
    expect(readJson(out, "config.json")["quantization_config"]).toEqual(config);
    const index = tensorNamed(tensors, "model.layers.0.mlp.down_proj.g_idx");
    expect([...wordsOf(index.bytes)]).toEqual(
      Array.from({ length: 96 }, (_, i) => Math.floor(i / 32)),
    );
  });

  it("gptq holds symmetric grids, less one", async () => {
    const { run, tensors } = await written({ ...EVERY, bits, symmetric: true }, "gptq");
    for (const linear of run.linears) expectSame(linear, gptqReader(tensors, linear, bits, 1));
  });

  it.each([true, false])("compressed-tensors does (symmetric: %s)", async (symmetric) => {
    const settings = { ...EVERY, bits, symmetric };
    const { run, tensors, out } = await written(settings, "compressed-tensors");
    for (const linear of run.linears) expectSame(linear, compressedReader(tensors, linear, bits));
    const shape = tensorNamed(tensors, "model.layers.0.mlp.down_proj.weight_shape");
    expect([shape.dtype, ...wordsOf(shape.bytes)]).toEqual(["I64", 64, 0, 96, 0]);
    expect(readJson(out, "config.json")["quantization_config"]).toMatchObject({
      format: "pack-quantized",
      config_groups: {
        group_0: {
          weights: { num_bits: bits, symmetric, strategy: "group", group_size: 32 },
          input_activations: null,
        },
      },
    });
  });

  it.each([true, false])("aq does (symmetric: %s)", async (symmetric) => {
    const { run, tensors, out } = await written({ ...EVERY, bits, symmetric }, "aq");
    for (const linear of run.linears) expectSame(linear, ownReader(tensors, linear, bits));
    for (const [name, numbers] of run.plain) {
      const bytes = Buffer.from(numbers.buffer);
      expect(Buffer.from(tensorNamed(tensors, name).bytes).equals(bytes), name).toBe(true);
    }
    expect(readJson(out, "config.json")["quantization_config"]).toEqual({
      quant_method: "aq",
      format: 1,
      bits,
      group_size: 32,
      symmetric,
    });
  });
});

describe("awq", () => {
  it.each([true, false])("holds what the run holds (symmetric: %s)", async (symmetric) => {
    const { run, tensors, out } = await written({ ...EVERY, bits: 4, symmetric }, "awq");
    for (const linear of run.linears) expectSame(linear, awqReader(tensors, linear));
    expect(readJson(out, "config.json")["quantization_config"]).toEqual({
      quant_method: "awq",
      version: "gemm",
      bits: 4,
      group_size: 32,
      zero_point: true,
      modules_to_not_convert: ["lm_head"],
    });
  });
});

describe("grids of the published recipes", () => {
  const published = { ...EVERY, bits: 4, symmetric: false, published: true };

  it("whose zero points are no codes are carried by aq, and refused by name elsewhere", async () => {
    const { run, tensors } = await written(published, "aq");
    for (const linear of run.linears) expectSame(linear, ownReader(tensors, linear, 4));
    const name = "model.layers.0.self_attn.q_proj.weight";
    expect(tensorNamed(tensors, `${name}.zero`).dtype).toBe("F32");
    for (const format of ["awq", "gptq_v2", "compressed-tensors"] as const) {
      const out = path.join(temp, `never-${format}`);
      const refused = exportRun({ run: run.dir, format, out });
      await expectAqRejection(refused, "AQ_MODEL", name, "-300", "gguf or aq");
      expect(fs.existsSync(out)).toBe(false);
    }
  });

  it("that are symmetric lie one lower, which is written as an asymmetric grid", async () => {
    const { run, tensors, out } = await written({ ...published, symmetric: true }, "awq");
    expect(new Set(run.linears.flatMap(({ zeros }) => zeros))).toEqual(new Set([7]));
    for (const linear of run.linears) expectSame(linear, awqReader(tensors, linear));
    const packed = await written({ ...published, symmetric: true }, "compressed-tensors");
    expect(readJson(packed.out, "config.json")["quantization_config"]).toMatchObject({
      config_groups: { group_0: { weights: { symmetric: false } } },
    });
    expect(fs.existsSync(out)).toBe(true);
  });
});

describe("integers with activations", () => {
  it.each([
    [8, 8],
    [4, 8],
    [4, 4],
  ])("W%iA%i are signed bytes in compressed-tensors", async (bits, abits) => {
    const settings = { ...EVERY, bits, abits, symmetric: true, groupSize: 0 };
    const { run, tensors, out } = await written(settings, "compressed-tensors");
    for (const { name, codes, rows } of run.linears) {
      const { dtype, bytes } = tensorNamed(tensors, name);
      expect(dtype).toBe("I8");
      const expected = Int8Array.from(codes, (code) => code - 2 ** (bits - 1));
      expect(Buffer.from(bytes).equals(Buffer.from(expected.buffer)), name).toBe(true);
      const scale = tensorNamed(tensors, name.replace(/\.weight$/, ".weight_scale"));
      expect(scale.shape).toEqual([rows, 1]);
    }
    expect(readJson(out, "config.json")["quantization_config"]).toMatchObject({
      format: "int-quantized",
      config_groups: {
        group_0: {
          weights: { num_bits: bits, symmetric: true, strategy: "channel", group_size: null },
          input_activations: { num_bits: abits, strategy: "token", dynamic: true },
        },
      },
    });
  });
});

describe("odd shapes", () => {
  const shapes = fc.record({
    bits: fc.integer({ min: 2, max: 8 }),
    symmetric: fc.boolean(),
    headDim: fc.constantFrom(2, 6, 10),
    heads: fc.constantFrom(1, 2, 3),
    hidden: fc.integer({ min: 5, max: 45 }),
    mlp: fc.integer({ min: 3, max: 70 }),
    groupSize: fc.constantFrom(0, 7, 16),
    seed: fc.integer({ min: 1, max: 1000 }),
  });

  it("of any kind are carried by aq, short last groups included", async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async (shape) => {
        const settings = { ...shape, kvHeads: 1, blocks: 1 };
        const { run, tensors } = await written(settings, "aq");
        for (const linear of run.linears)
          expectSame(linear, ownReader(tensors, linear, shape.bits));
      }),
      { numRuns: 12 },
    );
  });

  it("in whole channels are carried by compressed-tensors", async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async (shape) => {
        const settings = { ...shape, groupSize: 0, kvHeads: 1, blocks: 1 };
        const { run, tensors } = await written(settings, "compressed-tensors");
        for (const linear of run.linears) {
          expectSame(linear, compressedReader(tensors, linear, shape.bits));
        }
      }),
      { numRuns: 12 },
    );
  });

  it("with short last groups are carried by gptq_v2", async () => {
    const settings = { ...EVERY, bits: 4, symmetric: false, groupSize: 40 };
    const { run, tensors } = await written(settings, "gptq_v2");
    for (const linear of run.linears) expectSame(linear, gptqReader(tensors, linear, 4, 0));
  });
});

describe("what is not quantized", () => {
  it("is there in float16, a tied head is not, and nothing else", async () => {
    const settings = { ...EVERY, bits: 4, symmetric: false, tied: true, attentionBias: true };
    const { run, tensors, out } = await written(settings, "awq");
    for (const [name, { bytes }] of run.outer) {
      expect(Buffer.from(tensorNamed(tensors, name).bytes).equals(Buffer.from(bytes))).toBe(true);
    }
    for (const [name, numbers] of run.plain) {
      const { dtype, bytes } = tensorNamed(tensors, name);
      const expected = Uint16Array.from(numbers, (x) => halfToBits(x, F16));
      expect(dtype).toBe("F16");
      expect(Buffer.from(bytes).equals(Buffer.from(expected.buffer)), name).toBe(true);
    }
    expect(run.plain.has("model.layers.0.self_attn.q_proj.bias")).toBe(true);
    expect(tensors.size).toBe(run.outer.size + run.plain.size + 3 * run.linears.length);
    expect(readJson(out, "config.json")).toMatchObject({
      tie_word_embeddings: true,
      torch_dtype: "float16",
    });
  });

  it("is refused where float16 cannot hold it", () => {
    const meter = new ChangeMeter();
    for (const x of [70000, -65520, Number.NaN]) {
      const act = (): unknown => shortsOf(Float32Array.of(1, x), "w", meter);
      expectAqError(act, "AQ_MODEL", '"w"', "65504", "write hf or aq");
    }
    expect([...shortsOf(Float32Array.of(65519, 1), "w", meter)]).toEqual([0xff, 0x7b, 0, 0x3c]);
  });

  it("is rounded where the model was bfloat16, and it says by how much", async () => {
    const config = { torch_dtype: "bfloat16" };
    const settings = { ...EVERY, bits: 4, symmetric: false, bfloat16: true, config };
    const { out, run, tensors } = await written(settings, "gptq_v2");
    expect(readJson(out, "config.json")["torch_dtype"]).toBe("float16");
    for (const [name, tensor] of run.outer) {
      expect(tensor.dtype).toBe("BF16");
      const expected = Uint16Array.from(numbersOf(tensor), (x) => halfToBits(x, F16));
      const { dtype, bytes } = tensorNamed(tensors, name);
      expect([dtype, Buffer.from(bytes).equals(Buffer.from(expected.buffer))]).toEqual([
        "F16",
        true,
      ]);
    }
    const record = readJson(out, "aq_export.json");
    expect(record).toMatchObject({ format: "gptq_v2", change: { max: 0, rms: 0 } });
    const { rms } = record["other_change"] as { rms: number };
    expect(rms).toBeGreaterThan(1e-6);
    expect(rms).toBeLessThan(1e-3);
  });
});
