// What a run refuses before any work, and what it completes and says when it gets less than asked.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { recipeOf } from "../lib/calibration/recipe.ts";
import { resolveSettings, windowLength } from "../lib/calibration/settings.ts";
import { quantize } from "../lib/index.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, firstBlocks } from "./helpers/fixture.ts";
import { smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { tinyModel } from "./helpers/tiny-block.ts";

const tempFolder = tempFolders();
const resolve = (options: object) =>
  resolveSettings({ model: "m", out: "o", ...options } as QuantizeOptions);

describe("settings", () => {
  it("have defaults", () => {
    expect(resolve({})).toMatchObject({
      scheme: { wbits: 4, abits: 16, groupSize: 0, symmetric: false },
      recipe: {
        name: "default",
        sites: true,
        weightClip: true,
        tokenClip: true,
        rounding: "learned",
      },
      rotate: false,
      train: {
        affineEpochs: 10,
        roundEpochs: 10,
        alpha: 0.5,
        sf: 0.1,
        letLr: 5e-3,
        lwcLr: 1e-2,
        weightDecay: 0,
        augLoss: false,
        batch: 1,
      },
      nsamples: 32,
      seqlen: undefined,
      sampling: "sequential",
      seed: 0,
    });
  });

  it("add the second loss for quantized activations and for two bits, unless told", () => {
    const aug = (options: object) => resolve(options).train.augLoss;
    expect([aug({ abits: 8 }), aug({ wbits: 2 }), aug({ wbits: 3 })]).toEqual([true, true, false]);
    expect([aug({ abits: 4, augLoss: false }), aug({ augLoss: true })]).toEqual([false, true]);
  });

  it.each([
    { options: { wbits: 1 }, name: "wbits", range: "2 to 8" },
    { options: { wbits: 16 }, name: "wbits", range: "2 to 8" },
    { options: { abits: 12 }, name: "abits", range: "16" },
    { options: { groupSize: -8 }, name: "groupSize", range: "-8" },
    { options: { epochs: -1 }, name: "epochs", range: "0 to 10000" },
    { options: { epochs: 1.5 }, name: "epochs", range: "whole" },
    { options: { batch: 0 }, name: "batch", range: "1 to" },
    { options: { nsamples: 0 }, name: "nsamples", range: "1 to" },
    { options: { seqlen: 1 }, name: "seqlen", range: "2 to" },
    { options: { alpha: 1.5 }, name: "alpha", range: "0 to 1" },
    { options: { alpha: Number.NaN }, name: "alpha", range: "NaN" },
    { options: { sf: -0.1 }, name: "sf", range: "-0.1" },
    { options: { letLr: 2 }, name: "letLr", range: "got 2" },
    { options: { lwcLr: -1 }, name: "lwcLr", range: "got -1" },
    { options: { wd: 3 }, name: "wd", range: "got 3" },
    { options: { seed: 2 ** 32 }, name: "seed", range: "4294967295" },
    { options: { sampling: "first" }, name: "sampling", range: "sequential or random" },
    { options: { device: "tpu" }, name: "device", range: "tpu" },
    { options: { recipe: "magic" }, name: "magic", range: "default, affine, round, lwc-only, rtn" },
    { options: { recipe: "toString" }, name: "toString", range: "recipes:" },
    { options: { scheme: "NVFP5" }, name: "NVFP5", range: "did you mean NVFP4?" },
    { options: { scheme: "NVFP4", wbits: 3 }, name: "--wbits 3", range: "4-bit weights" },
    { options: { scheme: "NVFP4", rounding: "gptq" }, name: "gptq", range: "NVFP4" },
    { options: { scheme: "MXFP4A16", recipe: "paper-w4a4" }, name: "MXFP4A16", range: "integers" },
    { options: { keep: "down_proj" }, name: "keep", range: "list" },
  ])("refuse $options", ({ options, name, range }) => {
    expectAqError(() => resolve(options), "AQ_ARG", name, range);
  });

  it("share the epochs between the phases, the larger half for affine", () => {
    const epochs = (options: object) => {
      const { affineEpochs, roundEpochs } = resolve(options).train;
      return [affineEpochs, roundEpochs];
    };
    expect(epochs({ epochs: 5 })).toEqual([3, 2]);
    expect(epochs({ epochs: 1 })).toEqual([1, 0]);
    expect(epochs({ epochs: 5, rounding: "nearest" })).toEqual([5, 0]);
    expect(epochs({ epochs: 5, rounding: "gptq" })).toEqual([5, 0]);
    expect(epochs({ epochs: 5, recipe: "affine" })).toEqual([5, 0]);
    expect(epochs({ epochs: 5, recipe: "rtn", rounding: "learned" })).toEqual([0, 5]);
  });

  it("rotate where activations are quantized, unless told", () => {
    const rotated = (options: object) => resolve(options).rotate;
    expect([rotated({ abits: 4 }), rotated({ abits: 16 })]).toEqual([true, false]);
    expect(rotated({ abits: 4, recipe: "affine" })).toBe(false);
    expect([rotated({ abits: 4, rotate: "off" }), rotated({ rotate: "on" })]).toEqual([
      false,
      true,
    ]);
  });

  it("of 4-bit floats neither rotate unless told nor learn what servers have no place for", () => {
    const { scheme, rotate, recipe, train } = resolve({ scheme: "NVFP4" });
    expect(scheme).toEqual({
      wbits: 4,
      abits: 4,
      groupSize: 16,
      symmetric: true,
      numbers: "nvfp4",
    });
    expect([rotate, recipe.tokenClip, recipe.weightClip, recipe.sites]).toEqual([
      false,
      false,
      true,
      true,
    ]);
    expect([recipe.rounding, train.augLoss]).toEqual(["learned", true]);
    expect(resolve({ scheme: "NVFP4", rotate: "on" }).rotate).toBe(true);
    expect(resolve({ scheme: "W4A4" })).toEqual(resolve({ wbits: 4, abits: 4 }));
    expect(resolve({ scheme: "W4A4" }).rotate).toBe(true);
  });

  it("have what is kept once, in one order", () => {
    expect(resolve({}).keep).toEqual([]);
    expect(resolve({ keep: ["o_proj", "fc*", "o_proj"] }).keep).toEqual(["fc*", "o_proj"]);
  });

  it("know their recipes", () => {
    const { name, ...affine } = recipeOf("affine");
    expect(recipeOf("default")).toEqual({
      ...affine,
      name: "default",
      rotate: true,
      rounding: "learned",
    });
    expect(recipeOf("rtn")).toMatchObject({ sites: false, weightClip: false, tokenClip: false });
    expect(name).toBe("affine");
  });

  it("take windows of 2048 tokens, or what the model can", () => {
    const { shape, traits } = tinyModel();
    const of = (maxTokens: number, slidingWindow?: number) => ({
      shape: { ...shape, maxTokens },
      traits: slidingWindow ? { ...traits, slidingWindow } : traits,
    });
    const usual = [windowLength(undefined, of(512)), windowLength(undefined, of(4096))];
    expect(usual).toEqual([512, 2048]);
    expect(windowLength(100, of(512))).toBe(100);
    expectAqError(() => windowLength(513, of(512)), "AQ_ARG", "513", "512 tokens");
    const windowed = (): number => windowLength(513, of(512, 512));
    expectAqError(windowed, "AQ_ARG", "513", "512 tokens", "window of its attention");
  });
});

describe("a run", () => {
  it.each([
    ["bad settings", { wbits: 9 }, "AQ_ARG", "wbits"],
    ["too many threads", { threads: 5000 }, "AQ_ARG", "5000"],
    ["a model that is not there", { model: "/no/such/model" }, "AQ_FILE", "/no/such/model"],
    ["a text that is not there", { calib: "/no/such.txt" }, "AQ_FILE", "/no/such.txt"],
    ["windows above the model's maximum", { seqlen: 1024 }, "AQ_ARG", "512"],
    ["linears that are not there", { keep: ["dwn_proj"] }, "AQ_ARG", "did you mean down_proj?"],
  ] as const)("refuses %s before it makes a folder", async (_, options, code, part) => {
    const out = path.join(tempFolder(), "out");
    await expectAqRejection(smallRun({ out, ...options }), code, part);
    expect(fs.existsSync(out)).toBe(false);
  });

  it("refuses a text shorter than a window, with both lengths", async () => {
    const [calib, out] = [path.join(tempFolder(), "short.txt"), path.join(tempFolder(), "out")];
    fs.writeFileSync(calib, "It is a truth universally acknowledged");
    await expectAqRejection(smallRun({ out, calib }), "AQ_ARG", "tokens", "64");
    fs.writeFileSync(calib, "");
    await expectAqRejection(smallRun({ out, calib }), "AQ_FILE", "short.txt");
    expect(fs.existsSync(out)).toBe(false);
  });

  it("uses the windows that there are and says so", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const calib = path.join(tempFolder(), "some.txt");
    fs.writeFileSync(calib, fs.readFileSync(BOOKS, "utf8").slice(0, 1500));
    const options = { model, calib, recipe: "rtn", nsamples: 20 } as const;
    const { events, notes } = await smallRun({ ...options, out: tempFolder() });
    const windows = (events[0] as { windows: number }).windows;
    expect(windows).toBeGreaterThan(3);
    expect(windows).toBeLessThan(20);
    expect(notes).toEqual([
      `the calibration text holds ${windows} windows of 64 tokens, 20 were asked for: using all`,
      `no text is left after the calibration windows: perplexity is measured on ${windows} of them`,
    ]);
  });

  it("without a text says which one it takes", async () => {
    const out = path.join(tempFolder(), "out");
    const notes: string[] = [];
    const model = firstBlocks(tempFolder(), 1);
    const options = { model, out, recipe: "rtn", nsamples: 2, seqlen: 32 } as const;
    const { pplAfter } = await quantize(options, {
      onEvent: (event) => {
        if (event.event === "note") notes.push(event.text);
      },
    });
    expect(notes[0]).toContain("public-domain books");
    expect(pplAfter).toBeGreaterThan(1);
    expect(inputOf(out)).toEqual({
      text: "calibration.txt of the package",
      windows: 2,
      seqlen: 32,
    });
  });
});

/** What job.json says of the calibration text. */
function inputOf(out: string) {
  const job = JSON.parse(fs.readFileSync(path.join(out, "aq", "job.json"), "utf8")) as {
    text: string;
    identity: { calibration: { windows: number; seqlen: number } };
  };
  const { windows, seqlen } = job.identity.calibration;
  return { text: job.text, windows, seqlen };
}
