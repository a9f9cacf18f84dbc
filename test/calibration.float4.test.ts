// Runs in 4-bit floats: they learn, their bytes repeat, they go on after a stop, and what the folder
// says is what evaluation of it uses.
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { evaluate } from "../lib/evaluate.ts";
import { RunState } from "../lib/export/run-state.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { BOOKS } from "./helpers/fixture.ts";
import { expectSameResult, readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const LEARNING = { nsamples: 6, epochs: 4, letLr: 1e-2, recipe: "default" } as const;

type Job = { readonly finished: readonly { readonly inputGlobals: Record<string, number> }[] };

describe("NVFP4", () => {
  it("learns, with static global scales of what linears read", async () => {
    const live = liveTensors();
    const [out, rounded] = [tempFolder(), tempFolder()];
    const learned = await smallRun({ ...LEARNING, scheme: "NVFP4", out });
    const nearest = await smallRun({ ...LEARNING, scheme: "NVFP4", out: rounded, recipe: "rtn" });
    expect(liveTensors()).toBe(live);
    for (const [i, block] of learned.result.blocks.entries()) {
      expect(block.lossLast, `block ${i}`).toBeLessThan(block.lossFirst as number);
      expect(block.streamError).toBeLessThan(nearest.result.blocks[i]?.streamError as number);
      expect(block).toMatchObject({ fallback: null, skippedSteps: 0, equivalent: true });
      expect(block.equivalence).toBeLessThan(1e-5);
    }
    expect(Object.keys(learned.result.blocks[0]?.losses ?? {})).toEqual(["affine", "round"]);
    const { finished } = readJson(out, "aq", "job.json") as unknown as Job;
    const config = readJson(out, "aq_config.json");
    expect(config).toMatchObject({ numbers: "nvfp4", wbits: 4, group_size: 16 });
    const globals = (config["activations"] as { global_scales: object[] }).global_scales;
    expect(globals).toEqual(finished.map(({ inputGlobals }) => inputGlobals));
    for (const one of finished) {
      expect(Object.keys(one.inputGlobals).sort()).toEqual(["down", "norm1", "norm2", "o"]);
      expect(Object.values(one.inputGlobals).every((g) => g > 1)).toBe(true);
    }
  });

  it("shares a global scale where servers fuse linears", async () => {
    const out = tempFolder();
    await smallRun({ scheme: "NVFP4A16", out, recipe: "rtn" });
    const file = new RunState(out).openBlock(0);
    const global = (name: string): number =>
      new Float32Array(
        file.read(`model.layers.0.${name}.weight.global`).bytes.slice().buffer,
      )[0] as number;
    const [q, k, v] = ["q", "k", "v"].map((key) => global(`self_attn.${key}_proj`));
    expect([k, v]).toEqual([q, q]);
    expect(global("mlp.gate_proj")).toBe(global("mlp.up_proj"));
    expect(global("self_attn.o_proj")).not.toBe(q);
    file.close();
    const { finished } = readJson(out, "aq", "job.json") as unknown as Job;
    expect(finished[0]).not.toHaveProperty("inputGlobals");
  });

  it("is measured as calibration left it", async () => {
    const out = tempFolder();
    const { result } = await smallRun({ scheme: "NVFP4", out, recipe: "rtn" });
    const text = path.join(BOOKS);
    const asCalibrated = await evaluate({
      model: out,
      text,
      seqlen: 64,
      windows: 8,
      device: "cpu",
    });
    const whole = await evaluate({
      model: out,
      text,
      seqlen: 64,
      windows: 8,
      abits: 16,
      device: "cpu",
    });
    expect(asCalibrated.ppl).not.toBe(whole.ppl);
    expect(result.pplAfter).toBeGreaterThan(result.pplBefore);
  });
});

describe.each(["NVFP4", "MXFP4"])("a run of %s", (scheme) => {
  it("gives the same bytes for any number of threads, and after a stop", async () => {
    const [one, two] = [tempFolder(), tempFolder()];
    await smallRun({ scheme, out: one, threads: 1, recipe: "default" });
    const stop = new AbortController();
    const stopped = smallRun(
      { scheme, out: two, threads: 2, recipe: "default" },
      {
        signal: stop.signal,
        onEvent: (event) => {
          if (event.event === "block" && event.block === 0) stop.abort();
        },
      },
    );
    await expect(stopped).rejects.toMatchObject({ code: "AQ_STOPPED" });
    await smallRun({ scheme, out: two, threads: 2, recipe: "default" });
    expectSameResult(two, one);
  });

  it("can be polished, and keeps what it is told to", async () => {
    const out = tempFolder();
    const keep = ["layers.0.mlp.down_proj", "*.o_proj"];
    const { result } = await smallRun({ scheme, out, nsamples: 4, epochs: 2, polish: 1, keep });
    expect(result.polish?.divergence).toHaveLength(2);
    const state = new RunState(out);
    const job = state.readJob();
    const file = state.openBlock(0, job?.polish?.blocks.length ? "polished" : "blocks");
    expect(file.read("model.layers.0.mlp.down_proj.weight").dtype).toBe("f32");
    expect(file.read("model.layers.0.mlp.up_proj.weight.codes").dtype).toBe("u8");
    file.close();
    const kept = readJson(out, "aq_config.json")["kept"] as string[][];
    expect(kept.map((keys) => [...keys].sort())).toEqual(
      kept.map((_, i) => (i === 0 ? ["down", "o"] : ["o"])),
    );
    for (const { inputGlobals = {} } of job?.finished ?? [])
      expect(inputGlobals).not.toHaveProperty("o");
  });
});
