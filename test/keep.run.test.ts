// Runs that leave linears as they are: what is written, what is said of it, and what a resumed run compares.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { evaluate } from "../lib/evaluate.ts";
import { inspect } from "../lib/inspect.ts";
import type { RunReport } from "../lib/report/types.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, copyFixture, firstBlocks } from "./helpers/fixture.ts";
import { type Run, smallRun } from "./helpers/small-run.ts";
import { sharedFolders, tempFolders } from "./helpers/temp-folder.ts";
import { readTensors } from "./helpers/tensor-file.ts";

const tempFolder = tempFolders();
const sharedFolder = sharedFolders();
const KEEP = ["layers.0.mlp.down_proj", "*.o_proj"];

/** Of each linear: are its bytes those of the source? */
function unchanged(model: string, out: string): string[] {
  const [before, after] = [model, out].map((dir) =>
    readTensors(path.join(dir, "model.safetensors")),
  );
  return [...(before ?? [])]
    .filter(([name]) => name.includes("_proj"))
    .filter(
      ([name, { bytes }]) => Buffer.compare(bytes, after?.get(name)?.bytes ?? Buffer.of()) === 0,
    )
    .map(([name]) => name)
    .sort();
}

function identityOf(out: string): { settings: Record<string, unknown> } {
  const job = fs.readFileSync(path.join(out, "aq", "job.json"), "utf8");
  return (JSON.parse(job) as { identity: { settings: Record<string, unknown> } }).identity;
}

describe("a run with --keep", () => {
  let model: string;
  let out: string;
  let run: Run;

  beforeAll(async () => {
    model = firstBlocks(sharedFolder("model"), 2);
    out = path.join(sharedFolder("run"), "out");
    run = await smallRun({ model, out, recipe: "rtn", wbits: 3, abits: 8, keep: KEEP });
  });

  it("writes what it keeps as it was, and quantizes the rest", () => {
    expect(unchanged(model, out)).toEqual([
      "model.layers.0.mlp.down_proj.weight",
      "model.layers.0.self_attn.o_proj.weight",
      "model.layers.1.self_attn.o_proj.weight",
    ]);
  });

  it("says so everywhere", () => {
    expect(run.notes).toContain(
      "3 of 14 linears stay as stored (--keep *.o_proj layers.0.mlp.down_proj)",
    );
    expect(inspect({ model: out }).quantized).toMatchObject({ wbits: 3, abits: 8, kept: 3 });
    const file = path.join(out, "aq", "report.json");
    const report = JSON.parse(fs.readFileSync(file, "utf8")) as RunReport;
    expect(report.bits.kept.map(({ name }) => name)).toEqual(["o", "down"]);
    expect(report.command).toContain("--keep layers.0.mlp.down_proj '*.o_proj'");
    expect(report.settings["keep"]).toBe("*.o_proj layers.0.mlp.down_proj");
  });

  it("is evaluated as it was calibrated, from its folder", async () => {
    const options = { text: BOOKS, seqlen: 64, windows: 4, device: "cpu" } as const;
    const { ppl } = await evaluate({ model: out, ...options });
    const { ppl: full } = await evaluate({ model, ...options });
    expect(ppl / full).toBeLessThan(3);
  });

  it("goes on only with the same names", async () => {
    const options = { model, out, recipe: "rtn", wbits: 3, abits: 8 } as const;
    const again = await smallRun({ ...options, keep: [...KEEP].reverse() });
    expect(again.events[0]).toMatchObject({ event: "resume", finished: true });
    await expectAqRejection(smallRun(options), "AQ_ARG", "the setting keep was", "now absent");
    await expectAqRejection(smallRun({ ...options, keep: ["*.o_proj"] }), "AQ_ARG", "keep");
  });
});

/** The trained model's first block with an mlp of fewer channels. */
function narrowed(mlp: number): string {
  const source = firstBlocks(tempFolder(), 1);
  return copyFixture(source, tempFolder(), {
    config: (config) => ({ ...config, intermediate_size: mlp }),
    tensors: (tensors) => {
      for (const [name, tensor] of tensors) {
        const [rows = 0, columns = 0] = tensor.shape;
        const bytes = (at: number, count: number) => tensor.bytes.slice(2 * at, 2 * (at + count));
        if (/gate_proj|up_proj/.test(name)) {
          tensors.set(name, { ...tensor, shape: [mlp, columns], bytes: bytes(0, mlp * columns) });
        }
        if (/down_proj/.test(name)) {
          const parts = Array.from({ length: rows }, (_, row) => bytes(row * columns, mlp));
          tensors.set(name, { ...tensor, shape: [rows, mlp], bytes: Buffer.concat(parts) });
        }
      }
    },
  });
}

describe("4-bit floats", () => {
  it.each(["NVFP4", "MXFP4A16"])("leave a linear that groups do not divide, %s", async (scheme) => {
    const model = narrowed(696);
    const out = path.join(tempFolder(), "out");
    const { result, notes } = await smallRun({ model, out, recipe: "default", scheme });
    expect(notes.join()).toContain("down_proj of every block stays as stored");
    expect(inspect({ model: out }).quantized).toMatchObject({ scheme, kept: 1 });
    expect(result.pplAfter).toBeGreaterThan(1);
    const { ppl } = await evaluate({
      model: out,
      text: BOOKS,
      seqlen: 64,
      windows: 2,
      device: "cpu",
    });
    expect(ppl).toBeGreaterThan(1);
  });
});

describe("the identity of a run", () => {
  it("of integers that keeps nothing is that of versions that could not", async () => {
    const out = path.join(tempFolder(), "out");
    const model = firstBlocks(tempFolder(), 1);
    await smallRun({ model, out, recipe: "rtn", scheme: "W4A16" });
    const { settings } = identityOf(out);
    expect(Object.keys(settings).sort()).toEqual([
      "device",
      "hadamardDown",
      "nsamples",
      "polish",
      "precision",
      "recipe",
      "rotate",
      "sampling",
      "scheme",
      "seed",
      "train",
    ]);
    expect(settings["scheme"]).toEqual({ wbits: 4, abits: 16, groupSize: 0, symmetric: false });
    const { events } = await smallRun({ model, out, recipe: "rtn", wbits: 4 });
    expect(events[0]).toMatchObject({ event: "resume", finished: true });
  });

  it("of 4-bit floats has their name, and a run of integers is none", async () => {
    const out = path.join(tempFolder(), "out");
    const model = firstBlocks(tempFolder(), 1);
    await smallRun({ model, out, recipe: "rtn", scheme: "MXFP4A16" });
    expect(identityOf(out).settings["scheme"]).toMatchObject({ numbers: "mxfp4", groupSize: 32 });
    expect(inspect({ model: out }).quantized).toMatchObject({ scheme: "MXFP4A16" });
    const checkpoint = openCheckpoint(out);
    expect(checkpoint.has("model.layers.0.mlp.down_proj.weight")).toBe(true);
    checkpoint.close();
    const integers = { model, out, recipe: "rtn", groupSize: 32, symmetric: true } as const;
    await expectAqRejection(smallRun(integers), "AQ_ARG", "numbers");
  });
});
