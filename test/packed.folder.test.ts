// Whole packed folders as others make them: measured like the weights that they stand for, shown by
// inspect, and refused where this version would measure something else.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { evaluate } from "../lib/evaluate.ts";
import { inspect } from "../lib/inspect.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, firstBlocks } from "./helpers/fixture.ts";
import {
  awq,
  awqConfig,
  compressedConfig,
  gptq,
  gptqConfig,
  halves,
  intQuantized,
  type PlainGrid,
  packQuantized,
  type Tensors,
  valuesOf,
} from "./helpers/pack.ts";
import { smallRun } from "./helpers/small-run.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";
import { numbersOf, type StoredTensor } from "./helpers/tensor-file.ts";

const TEXT = { text: BOOKS, seqlen: 64, windows: 2 } as const;
const newFolder = sharedFolders();
const LINEAR = /_proj\.weight$/;

let source = "";
beforeAll(() => {
  source = firstBlocks(newFolder("source"), 1);
});

/** The nearest codes on symmetric grids, or on ones that are off the middle. */
function toGrid(tensor: StoredTensor, bits: number, group: number, zero: number): PlainGrid {
  const [rows, columns] = tensor.shape as [number, number];
  const w = numbersOf(tensor);
  const codes: number[] = [];
  const scales: number[] = [];
  for (let o = 0; o < rows; o++) {
    for (let first = 0; first < columns; first += group) {
      const part = w.slice(o * columns + first, o * columns + Math.min(columns, first + group));
      const largest = part.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
      // A power of two, which float16 and bfloat16 hold alike.
      const scale = 2 ** Math.ceil(Math.log2(largest / 2 ** (bits - 1)));
      scales.push(scale);
      const top = 2 ** bits - 1;
      for (const x of part) codes.push(Math.min(top, Math.max(0, Math.round(x / scale) + zero)));
    }
  }
  return { bits, rows, columns, group, codes, scales, zeros: scales.map(() => zero) };
}

interface Packing {
  readonly bits: number;
  readonly group: number;
  readonly zero: number;
  readonly write: (grid: PlainGrid) => Tensors;
  readonly config: object;
  readonly order?: boolean;
  /** Tensors of the folder beside those. */
  readonly more?: (name: string, grid: PlainGrid) => Readonly<Record<string, StoredTensor>>;
}

/** The same weights twice: packed, and in float32 as what the codes stand for. */
function folders(packing: Packing): { packed: string; plain: string } {
  const { bits, group, zero, write, config, more } = packing;
  const [packed, plain] = [newFolder("packed"), newFolder("plain")];
  copyFixture(source, packed, {
    config: (json) => ({ ...json, quantization_config: config }),
    tensors: (tensors) => {
      for (const [name, tensor] of [...tensors]) {
        if (!LINEAR.test(name)) continue;
        const grid = toGrid(tensor, bits, group, zero);
        tensors.delete(name);
        const parts = { ...write(grid), ...more?.(name, grid) };
        for (const [part, value] of Object.entries(parts)) {
          tensors.set(name.replace(/weight$/, part), value);
        }
      }
    },
  });
  copyFixture(source, plain, {
    tensors: (tensors) => {
      for (const [name, tensor] of tensors) {
        if (!LINEAR.test(name)) continue;
        const grid = toGrid(tensor, bits, group, zero);
        const order = packing.order ? reversed(grid) : undefined;
        const bytes = new Uint8Array(Float32Array.from(valuesOf(grid, order)).buffer);
        tensors.set(name, { dtype: "F32", shape: tensor.shape, bytes });
      }
    },
  });
  return { packed, plain };
}

/** Groups of the columns from the last to the first. */
function reversed({ columns, group }: PlainGrid): number[] {
  const groups = Math.ceil(columns / group);
  return Array.from({ length: columns }, (_, i) => groups - 1 - Math.floor(i / group));
}

async function expectSame(packing: Packing, quantized: object): Promise<void> {
  const { packed, plain } = folders(packing);
  const [a, b] = [
    await evaluate({ model: packed, ...TEXT }),
    await evaluate({ model: plain, ...TEXT }),
  ];
  expect(Math.abs(a.ppl / b.ppl - 1)).toBeLessThan(1e-6);
  const shown = inspect({ model: packed });
  expect(shown.quantized).toEqual(quantized);
  expect(shown.parameters).toBe(inspect({ model: plain }).parameters);
  const again = smallRun({ model: packed, out: path.join(packed, "out"), recipe: "rtn" });
  await expectAqRejection(again, "AQ_MODEL", packed, "already quantized", "full-precision");
}

const grid4 = { bits: 4, group: 64, columns: 0 } as PlainGrid;

describe("a folder of", () => {
  it("GPTQ is measured as its codes say", async () => {
    const write = (grid: PlainGrid): Tensors => gptq(grid, 1);
    const config = gptqConfig(grid4, 1, { checkpoint_format: undefined, sym: true });
    await expectSame(
      { bits: 4, group: 64, zero: 8, write, config },
      { format: "gptq", wbits: 4, abits: 16, groupSize: 64 },
    );
  });

  it("GPTQ in act order, with biases of zeros that LLaMA does not have", async () => {
    const write = (grid: PlainGrid): Tensors => gptq(grid, 2, reversed(grid));
    const more = (_: string, { rows }: PlainGrid) => ({
      bias: halves(new Array<number>(rows).fill(0), [rows]),
    });
    const config = gptqConfig({ ...grid4, bits: 3 }, 2, { desc_act: true });
    const packing = { bits: 3, group: 64, zero: 4, write, config, more, order: true };
    const { packed, plain } = folders(packing);
    const [a, b] = [
      await evaluate({ model: packed, ...TEXT }),
      await evaluate({ model: plain, ...TEXT }),
    ];
    expect(Math.abs(a.ppl / b.ppl - 1)).toBeLessThan(1e-6);
  });

  it("AWQ", async () => {
    const packing = { bits: 4, group: 64, zero: 5, write: awq, config: awqConfig(grid4) };
    const quantized = { format: "awq", wbits: 4, abits: 16, groupSize: 64 };
    await expectSame(packing, quantized);
  });

  it("compressed-tensors, packed", async () => {
    await expectSame(
      {
        bits: 4,
        group: 64,
        zero: 8,
        write: (grid) => packQuantized(grid, true),
        config: compressedConfig(grid4, "pack-quantized", true),
      },
      { format: "compressed-tensors, pack-quantized", wbits: 4, abits: 16, groupSize: 64 },
    );
  });

  it("compressed-tensors, in bytes", async () => {
    await expectSame(
      {
        bits: 8,
        group: 704,
        zero: 128,
        write: (grid) => intQuantized(grid, true),
        config: compressedConfig(
          { bits: 8, group: 1, columns: 1 } as PlainGrid,
          "int-quantized",
          true,
        ),
      },
      { format: "compressed-tensors, int-quantized", wbits: 8, abits: 16, groupSize: 0 },
    );
  });

  it("an exporter that left config.json alone is read by its own file", async () => {
    const config = { w_bit: 4, q_group_size: 64, zero_point: true, version: "GEMM" };
    const { packed, plain } = folders({ bits: 4, group: 64, zero: 8, write: awq, config: {} });
    const file = path.join(packed, "config.json");
    const json = JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, unknown>;
    fs.writeFileSync(file, JSON.stringify({ ...json, quantization_config: undefined }));
    fs.writeFileSync(path.join(packed, "quant_config.json"), JSON.stringify(config));
    const [a, b] = [
      await evaluate({ model: packed, ...TEXT }),
      await evaluate({ model: plain, ...TEXT }),
    ];
    expect(Math.abs(a.ppl / b.ppl - 1)).toBeLessThan(1e-6);
  });
});

describe("what is not read here", () => {
  /** A full-precision folder that says that it is quantized. */
  const describedAs = (config: object): string =>
    copyFixture(source, newFolder("described"), {
      config: (json) => ({ ...json, quantization_config: config }),
    });

  it("is refused with what it is and what is read", async () => {
    const unread: [object, string][] = [
      [{ quant_method: "fp8" }, '"fp8"'],
      [{ quant_method: "bitsandbytes", load_in_4bit: true }, '"bitsandbytes"'],
      [{ bits: 4 }, "quant_method"],
      [{ quant_method: "awq", bits: 4, group_size: 64, version: "gemv" }, '"gemv"'],
      [{ quant_method: "gptq", bits: 5, group_size: 64 }, "5 bits"],
      [{ quant_method: "compressed-tensors", format: "mxfp8-quantized" }, "mxfp8"],
      [{ quant_method: "modelopt", quant_algo: "FP8" }, '"FP8"'],
    ];
    for (const [config, word] of unread) {
      const model = describedAs(config);
      await expectAqRejection(evaluate({ model, ...TEXT }), "AQ_MODEL", model, word, "it reads aq");
      expectAqError(() => inspect({ model }), "AQ_MODEL", word);
      const again = smallRun({ model, out: path.join(model, "out"), recipe: "rtn" });
      await expectAqRejection(again, "AQ_MODEL", model, "already quantized");
    }
  });

  it("is told from what is malformed", () => {
    const malformed: [object, string][] = [
      [{ quant_method: "gptq", bits: "4" }, '"bits" must be a whole number'],
      [{ quant_method: "gptq", bits: 4, group_size: 0 }, '"group_size"'],
      [{ quant_method: "awq", bits: 4, group_size: 64, zero_point: "yes" }, '"zero_point"'],
      [{ quant_method: "compressed-tensors", format: "pack-quantized" }, '"config_groups"'],
    ];
    for (const [config, word] of malformed) {
      const model = describedAs(config);
      expectAqError(() => inspect({ model }), "AQ_FORMAT", model, word);
    }
  });

  it("a description without packed tensors leaves full-precision weights as they are", async () => {
    const model = describedAs(gptqConfig(grid4, 2));
    const [a, b] = [await evaluate({ model, ...TEXT }), await evaluate({ model: source, ...TEXT })];
    expect(a.ppl).toBe(b.ppl);
  });
});
