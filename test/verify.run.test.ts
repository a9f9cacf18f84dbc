// What was exported, read back by code that shares nothing with the writers: equal to the run, and found
// out wherever a single bit is another.
import * as path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { evaluate } from "../lib/evaluate.ts";
import { exportRun } from "../lib/export-run.ts";
import type { FormatName } from "../lib/export-types.ts";
import { inspect } from "../lib/inspect.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { verify } from "../lib/verify.ts";
import { BOOKS, firstBlocks, inSingle, OPT } from "./helpers/fixture.ts";
import { expectFlipsFound } from "./helpers/flips.ts";
import { smallRun } from "./helpers/small-run.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";

const newFolder = sharedFolders();
let source = "";

beforeAll(() => {
  source = firstBlocks(newFolder("source"), 1);
});

/** Not by the format's name alone: "aq" is where the run itself is kept. */
function folderOf(out: string, format: FormatName): string {
  return path.join(out, `as-${format}`);
}

/** Quantizes to nearest and exports. */
async function exported(
  model: string,
  options: Partial<QuantizeOptions>,
  formats: readonly FormatName[],
): Promise<string> {
  const out = newFolder("run");
  await smallRun({ model, out, recipe: "rtn", ...options });
  for (const format of formats) await exportRun({ run: out, out: folderOf(out, format), format });
  return out;
}

const TEXT = { text: BOOKS, seqlen: 64, windows: 4 } as const;

/** Codes of a block of the trained model. */
const CODES = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 704;

const RUNS: readonly [string, Partial<QuantizeOptions>, readonly FormatName[]][] = [
  [
    "W4 g32",
    { wbits: 4, groupSize: 32 },
    ["gptq_v2", "awq", "compressed-tensors", "gguf", "gguf-f16", "aq", "hf"],
  ],
  [
    "W4, symmetric",
    { wbits: 4, symmetric: true },
    ["gptq", "gptq_v2", "awq", "compressed-tensors", "gguf", "aq"],
  ],
  ["W3 g64", { wbits: 3, groupSize: 64 }, ["gptq_v2", "compressed-tensors", "gguf", "aq"]],
  ["W2 g32, symmetric", { wbits: 2, groupSize: 32, symmetric: true }, ["gptq", "aq"]],
  ["W8, symmetric", { wbits: 8, symmetric: true }, ["gptq", "compressed-tensors", "gguf", "aq"]],
];

describe.each(RUNS)("a run of %s", (_, options, formats) => {
  let out = "";
  beforeAll(async () => {
    out = await exported(source, options, formats);
  });

  it("equals everything that was made of it", async () => {
    const { run, folders } = await verify({ dir: out });
    expect(run).toBe(out);
    expect(folders.map(({ format }) => format).sort()).toEqual([...formats, "hf"].sort());
    for (const { linears, codes, others } of folders) {
      expect({ linears, codes, others }).toEqual({ linears: 7, codes: CODES, others: 4 });
    }
  });

  it("is measured the same in all packed folders", async () => {
    const { ppl } = await evaluate({ model: out, ...TEXT });
    const { parameters } = inspect({ model: out });
    for (const format of formats.filter((f) => !f.startsWith("gguf"))) {
      const model = folderOf(out, format);
      const packed = await evaluate({ model, ...TEXT });
      expect(Math.abs(packed.ppl / ppl - 1), format).toBeLessThan(1e-3);
      expect(inspect({ model })).toMatchObject({
        parameters,
        quantized: { wbits: options.wbits, abits: 16 },
      });
    }
  });

  it("differs as soon as one bit of a quantized tensor is another", async () => {
    for (const format of formats.filter((f) => f !== "hf")) {
      await expectFlipsFound(folderOf(out, format));
    }
  }, 240_000);
});

describe("quantized activations", () => {
  it("are those of the run in our own format, and those of servers in others", async () => {
    // Float32, so that the run's output loses nothing in its type.
    const single = inSingle(source, newFolder("single"));
    const out = await exported(single, { wbits: 4, abits: 4 }, ["aq"]);
    const { ppl } = await evaluate({ model: out, ...TEXT });
    const own = await evaluate({ model: folderOf(out, "aq"), ...TEXT });
    expect(Math.abs(own.ppl / ppl - 1)).toBeLessThan(1e-6);
    const [weights, same] = [out, folderOf(out, "aq")].map((model) =>
      evaluate({ model, ...TEXT, abits: 16 }),
    );
    const [expected, got] = [(await weights)?.ppl as number, (await same)?.ppl as number];
    expect(Math.abs(got / expected - 1)).toBeLessThan(1e-6);
    expect(Math.abs(ppl / expected - 1)).toBeGreaterThan(1e-3);
    expect((await verify({ dir: out })).folders).toHaveLength(2);
  });

  it("of a description are applied to what linears read", async () => {
    const options = { wbits: 8, abits: 8, symmetric: true };
    const out = await exported(source, options, ["compressed-tensors"]);
    const model = folderOf(out, "compressed-tensors");
    const [full, tokens] = [16, undefined].map((abits) =>
      evaluate({ model, ...TEXT, ...(abits === undefined ? {} : { abits }) }),
    );
    const run = await evaluate({ model: out, ...TEXT });
    expect((await tokens)?.ppl).not.toBe((await full)?.ppl);
    // q, k and v are not quantized by servers, and nothing is clipped.
    expect(Math.abs(((await tokens)?.ppl as number) / run.ppl - 1)).toBeLessThan(0.01);
    expect(inspect({ model }).quantized).toMatchObject({ wbits: 8, abits: 8 });
    expect((await verify({ dir: model })).folders).toMatchObject([
      { format: "compressed-tensors", linears: 7, codes: CODES },
    ]);
    await expectFlipsFound(model);
  });
});

describe("what only some formats carry", () => {
  it("is found again: matrices behind norms", async () => {
    const options = { recipe: "affine", normFull: true, wbits: 4, groupSize: 32 } as const;
    const out = await exported(source, options, ["compressed-tensors", "aq"]);
    const { folders } = await verify({ dir: out });
    expect(folders.map(({ format }) => format)).toEqual(["hf", "aq", "compressed-tensors"]);
    const { ppl } = await evaluate({ model: out, ...TEXT });
    for (const format of ["compressed-tensors", "aq"] as const) {
      const packed = await evaluate({ model: folderOf(out, format), ...TEXT });
      expect(Math.abs(packed.ppl / ppl - 1), format).toBeLessThan(1e-3);
    }
  });

  it("is found again: rotated tensors and a Hadamard transform", async () => {
    const options = { rotate: "on", hadamard: "down", wbits: 4, abits: 8 } as const;
    const out = await exported(source, options, ["aq"]);
    const { folders } = await verify({ dir: out });
    expect(folders.map(({ format }) => format)).toEqual(["hf", "aq"]);
    for (const { notes } of folders) expect(notes.join()).not.toContain("not compared");
    const { ppl } = await evaluate({ model: out, ...TEXT });
    const packed = await evaluate({ model: folderOf(out, "aq"), ...TEXT });
    expect(Math.abs(packed.ppl / ppl - 1)).toBeLessThan(5e-3);
  });

  it("is found again: biases, and learned positions", async () => {
    const formats = ["gptq_v2", "awq", "compressed-tensors", "aq"] as const;
    const out = await exported(OPT, { wbits: 4 }, formats);
    const { folders } = await verify({ dir: out });
    expect(folders.map(({ format }) => format).sort()).toEqual([...formats, "hf"].sort());
    const { ppl } = await evaluate({ model: out, ...TEXT });
    for (const format of formats) {
      const packed = await evaluate({ model: folderOf(out, format), ...TEXT });
      expect(Math.abs(packed.ppl / ppl - 1), format).toBeLessThan(1e-3);
    }
  });
});
