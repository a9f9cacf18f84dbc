// The transform before down: the same function before anything is quantized, written so that only this
// package runs it, and applied when the folder is evaluated.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Rotation } from "../lib/affine/rotation.ts";
import { siteName } from "../lib/affine/sites.ts";
import { forward } from "../lib/calibration/passes.ts";
import { loadCalibration } from "../lib/calibration/text.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { readTextFile } from "../lib/data/text.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { embedWindow, forwardLogits, logitsOf, perplexity } from "../lib/eval/perplexity.ts";
import { evaluate } from "../lib/evaluate.ts";
import { extrasOf, readAqConfig } from "../lib/export/aq-config.ts";
import { hadamardJson, readHadamard } from "../lib/export/hadamard-json.ts";
import { inspect } from "../lib/inspect.ts";
import { randomHadamard } from "../lib/models/hadamard-down.ts";
import { openModel } from "../lib/models/registry.ts";
import { weightSource } from "../lib/models/source.ts";
import { passThrough } from "../lib/quant/activations.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, TRAINED, tinyFixture, tinyFixtures, withModel } from "./helpers/fixture.ts";
import { type Run, readJson, SMALL, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
/** Its MLP has a power of two of channels, the trained LLaMA's 64 x 11. */
const OPT = path.join(path.dirname(TRAINED), "opt-5m");

/** Largest difference of logits, measured by the largest of them. */
function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    difference = Math.max(difference, Math.abs((a[i] as number) - (b[i] as number)));
    largest = Math.max(largest, Math.abs(a[i] as number));
  }
  return difference / largest;
}

/** Logits of the weights as a run starts from them, nothing quantized. */
function startLogits(dir: string, ids: Int32Array, rotate: boolean): Float32Array {
  const checkpoint = openCheckpoint(dir);
  const has = (name: string): boolean => checkpoint.has(name);
  const { mlp } = openModel(checkpoint.config, has).shape;
  const model = openModel(checkpoint.config, has, { hadamardDown: randomHadamard(mlp, 3) });
  expect(model.sites.map(siteName)).not.toContain("updown");
  const rotation = rotate ? new Rotation(model, 3) : null;
  const source = weightSource(checkpoint, model, rotation);
  const context = model.context(ids.length, "f32");
  try {
    return scope(() => {
      const outer = source.loadOuter();
      let x = embedWindow(model, outer, ids);
      for (let i = 0; i < model.shape.blocks; i++) {
        x = forward(model, context, source.loadBlock(i), x, () => passThrough);
      }
      return { logits: logitsOf(model, outer, x).floats() };
    }).logits;
  } finally {
    context.dispose();
    rotation?.dispose();
    checkpoint.close();
  }
}

describe("the transform and its inverse in the weights", () => {
  it.each([TRAINED, OPT, ...tinyFixtures().map(tinyFixture)])("leave the logits of %s", (dir) => {
    const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 7) % 60);
    const live = liveTensors();
    const expected = withModel(dir, (model) => forwardLogits(model, ids));
    for (const rotate of [false, true]) {
      expect(apart(expected, startLogits(dir, ids, rotate))).toBeLessThan(1e-4);
    }
    expect(liveTensors()).toBe(live);
  });

  it("are part of the block: without the transform the folded weights compute something else", () => {
    const has = (): boolean => true;
    const config = readJson(TRAINED, "config.json");
    const plain = openModel(config, has);
    const { mlp } = plain.shape;
    expect(plain.hadamardDown).toBeNull();
    const wrong = { hadamardDown: randomHadamard(mlp / 2, 0) };
    expectAqError(() => openModel(config, has, wrong), "AQ_MODEL", String(mlp / 2), String(mlp));
    const model = openModel(config, has, { hadamardDown: randomHadamard(mlp, 0) });
    const context = model.context(4, "f32");
    expect(context.hadamardDown?.odd?.shape).toEqual([11, 11]);
    context.dispose();
  });

  it("come from the seed", () => {
    const signs = (seed: number) => [...randomHadamard(64, seed).signs];
    expect(signs(1)).toEqual(signs(1));
    expect(signs(1)).not.toEqual(signs(2));
    expect(new Set(signs(1))).toEqual(new Set([1, -1]));
  });
});

describe("a run with --hadamard down", () => {
  let temp = "";
  let out = "";
  let run: Run;
  let plain: Run;

  beforeAll(async () => {
    temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
    out = path.join(temp, "out");
    const options = { recipe: "default", wbits: 4, abits: 4 } as const;
    plain = await smallRun({ ...options, out: path.join(temp, "plain") });
    run = await smallRun({ ...options, out, hadamard: "down" });
  });

  afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

  it("is equivalent block by block, says what it costs, and pays", () => {
    for (const { equivalence } of run.result.blocks) expect(equivalence).toBeLessThan(1e-5);
    expect(run.notes.some((note) => /Hadamard.*11,968 additions a token/.test(note))).toBe(true);
    expect(plain.notes.some((note) => note.includes("Hadamard"))).toBe(false);
    expect(run.result.pplBefore).toBe(plain.result.pplBefore);
    expect(run.result.pplAfter).toBeLessThan(plain.result.pplAfter);
  });

  it("writes a folder that stock loaders refuse: their type and architecture are gone", () => {
    const [written, source] = [readJson(out, "config.json"), readJson(TRAINED, "config.json")];
    expect(written).toMatchObject({ model_type: "aq_llama" });
    expect(written).not.toHaveProperty("architectures");
    const { model_type: _, architectures: __, ...rest } = source;
    expect(written).toMatchObject({ ...rest, tie_word_embeddings: false });
    expect(readJson(temp, "plain", "config.json")).toMatchObject({ model_type: "llama" });
    expect(readAqConfig(path.join(temp, "plain"))?.hadamardDown).toBeNull();
  });

  it("names the transform so that a reader can make it again", () => {
    const json = readJson(out, "aq_config.json");
    expect(json["hadamard_down"]).toMatchObject({ kind: "hadamard-hartley", size: 704, odd: 11 });
    const config = readAqConfig(out);
    expect(config?.hadamardDown).toEqual(randomHadamard(704, 0));
    expect(config?.sites).toEqual(["norm.norm1", "norm.norm2", "vo", "qk-pairs"]);
    const { signs } = hadamardJson({ signs: Int8Array.of(-1, 1, 1, 1, 1, 1, 1, 1, 1, -1) });
    expect(signs).toBe("8040");
  });

  it("is applied when the folder is evaluated", async () => {
    const tokenizer = loadTokenizer(TRAINED);
    const { evaluation } = loadCalibration(BOOKS, tokenizer, SMALL.seqlen, {
      nsamples: SMALL.nsamples,
      calibSource: "text",
      sampling: "sequential",
      seed: 0,
    });
    const checkpoint = openCheckpoint(out);
    const config = readAqConfig(out);
    const has = (name: string): boolean => checkpoint.has(name);
    const model = openModel(checkpoint.config, has, extrasOf(config));
    const activations = { bits: 4, clips: config?.tokenClips ?? [] };
    const measure = (windows: readonly Int32Array[]) =>
      perplexity({ checkpoint, model, activations }, windows);
    expect((await measure(evaluation)).ppl).toBe(run.result.pplAfter);
    const first = sequentialWindows(tokenizer.encode(readTextFile(BOOKS)), SMALL.seqlen, 4);
    const expected = await measure(first);
    checkpoint.close();
    const options = { text: BOOKS, seqlen: SMALL.seqlen, windows: 4, device: "cpu" } as const;
    expect(await evaluate({ model: out, ...options })).toEqual(expected);
    // The same weights without it.
    const copy = path.join(tempFolder(), "copy");
    fs.cpSync(out, copy, { recursive: true });
    const { hadamard_down: _, ...rest } = readJson(out, "aq_config.json");
    fs.writeFileSync(path.join(copy, "aq_config.json"), JSON.stringify(rest));
    fs.writeFileSync(
      path.join(copy, "config.json"),
      JSON.stringify({ ...readJson(out, "config.json"), model_type: "llama" }),
    );
    const without = await evaluate({ model: copy, ...options });
    expect(without.ppl).toBeGreaterThan(3 * expected.ppl);
  });

  it("shows in inspect, and is refused without its aq_config.json", async () => {
    const shown = inspect({ model: out });
    expect(shown).toMatchObject({ family: "llama", quantized: { hadamardDown: true } });
    expect(shown.sites.map(({ site }) => site)).not.toContain("updown");
    const copy = path.join(tempFolder(), "copy");
    fs.cpSync(out, copy, { recursive: true });
    fs.rmSync(path.join(copy, "aq_config.json"));
    fs.rmSync(path.join(copy, "aq"), { recursive: true });
    const options = { model: copy, text: BOOKS, seqlen: 64, windows: 1 };
    await expectAqRejection(evaluate(options), "AQ_FORMAT", "aq_llama", "aq_config.json");
    expectAqError(() => inspect({ model: copy }), "AQ_FORMAT", "aq_llama", "aq_config.json");
  });

  it("is refused when its aq_config.json does not say what runs before down", () => {
    const copy = path.join(tempFolder(), "copy");
    fs.cpSync(out, copy, { recursive: true });
    fs.rmSync(path.join(copy, "aq"), { recursive: true });
    const file = path.join(copy, "aq_config.json");
    const { hadamard_down: _, ...rest } = JSON.parse(fs.readFileSync(file, "utf8"));
    fs.writeFileSync(file, JSON.stringify(rest));
    expectAqError(() => inspect({ model: copy }), "AQ_FORMAT", "aq_llama", "neither a Hadamard");
  });

  it.each([
    [{ kind: "random" }, '"kind"'],
    [{ size: 700 }, '"odd"'],
    [{ size: -1 }, '"size"'],
    [{ odd: 3 }, '"odd"'],
    [{ signs: "00" }, '"signs"'],
    [{ signs: "z".repeat(176) }, '"signs"'],
  ])("is refused where aq_config.json is damaged: %j", (change, part) => {
    const json = { ...hadamardJson(randomHadamard(704, 0)), ...change };
    expectAqError(() => readHadamard(json, "the file"), "AQ_FORMAT", "the file", part);
  });
});
