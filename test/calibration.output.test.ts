// The folder that a run writes: shaped like its source, its weights on the grid of the stored codes,
// and measured with the activation quantizers that it was calibrated with.
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadCalibration } from "../lib/calibration/text.ts";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { loadTokenizer } from "../lib/data/tokenizer.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { forwardLogits, perplexity } from "../lib/eval/perplexity.ts";
import { evaluate } from "../lib/evaluate.ts";
import { readAqConfig } from "../lib/export/aq-config.ts";
import { inspect } from "../lib/inspect.ts";
import { packageVersion } from "../lib/util/package.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, firstBlocks, TRAINED, withModel } from "./helpers/fixture.ts";
import { F16, halfToBits } from "./helpers/half.ts";
import { filesBelow, type Run, readJson, SMALL, smallRun } from "./helpers/small-run.ts";
import {
  numbersOf,
  readTensors,
  type StoredTensor,
  tensorNamed,
  writeTensors,
} from "./helpers/tensor-file.ts";

const GROUP = 96;
const SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX = "model.safetensors.index.json";

let temp = "";
let source = "";
let out = "";
let run: Run;

/** Splits a checkpoint in two in the middle of a block. */
function split(dir: string): void {
  const single = path.join(dir, "model.safetensors");
  const all = [...readTensors(single)];
  fs.rmSync(single);
  const half = Math.floor(all.length / 2);
  const weight_map: Record<string, string> = {};
  for (const [i, file] of SHARDS.entries()) {
    const part = i === 0 ? all.slice(0, half) : all.slice(half);
    writeTensors(path.join(dir, file), new Map(part));
    for (const [name] of part) weight_map[name] = file;
  }
  const total_size = all.reduce((sum, [, { bytes }]) => sum + bytes.length, 0);
  const index = { metadata: { total_size }, weight_map };
  fs.writeFileSync(path.join(dir, INDEX), `${JSON.stringify(index, null, 2)}\n`);
}

/** Every tensor of a sharded folder. */
function allTensors(dir: string): Map<string, StoredTensor> {
  return new Map(SHARDS.flatMap((file) => [...readTensors(path.join(dir, file))]));
}

beforeAll(async () => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  source = path.join(temp, "source");
  out = path.join(temp, "out");
  fs.mkdirSync(source);
  firstBlocks(source, 2);
  split(source);
  run = await smallRun({ model: source, out, wbits: 4, abits: 4, groupSize: GROUP });
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

describe("the folder", () => {
  it("has the files of the source, what aq-native adds, and nothing else", () => {
    const blocks = [0, 1].map((i) => `aq/blocks/block-000${i}.safetensors`);
    const run = ["job.json", "report.html", "report.json", "tokens.bin"].map(
      (name) => `aq/${name}`,
    );
    const written = [...run, "aq_config.json"];
    const added = [...blocks, ...written];
    expect(filesBelow(out)).toEqual([...filesBelow(source), ...added].sort());
    expect(filesBelow(source)).toContain("tokenizer.json");
  });

  it("has the source's configuration and tokenizer, byte for byte", () => {
    for (const file of filesBelow(source).filter((name) => !name.endsWith(".safetensors"))) {
      const [a, b] = [source, out].map((dir) => fs.readFileSync(path.join(dir, file), "utf8"));
      expect(b, file).toBe(a);
    }
  });

  it("has the same tensors in the same shards, in the same order, dtype and shape", () => {
    for (const file of SHARDS) {
      const [a, b] = [source, out].map((dir) =>
        [...readTensors(path.join(dir, file))].map(([name, { dtype, shape }]) => ({
          name,
          dtype,
          shape,
        })),
      );
      expect(b).toEqual(a);
    }
  });

  it("changes the weights of the blocks and no other byte", () => {
    const [before, after] = [allTensors(source), allTensors(out)];
    for (const [name, { bytes }] of after) {
      const same = Buffer.from(bytes).equals(tensorNamed(before, name).bytes);
      expect(same, name).toBe(!name.includes(".layers."));
    }
  });
});

describe("the weights", () => {
  it("are what the stored codes stand for, cast to the stored dtype, bit for bit", () => {
    const written = allTensors(out);
    let linears = 0;
    let others = 0;
    for (const block of [0, 1]) {
      const stored = readTensors(path.join(out, `aq/blocks/block-000${block}.safetensors`));
      for (const name of [...written.keys()].filter((n) => n.includes(`.layers.${block}.`))) {
        const { bytes, shape } = tensorNamed(written, name);
        const values = stored.has(`${name}.codes`)
          ? dequantize(stored, name, shape[1] as number)
          : numbersOf(tensorNamed(stored, name));
        if (stored.has(`${name}.codes`)) linears++;
        else others++;
        const expected = Uint16Array.from(values, (x) => halfToBits(x, F16));
        expect(Buffer.from(bytes).equals(Buffer.from(expected.buffer)), name).toBe(true);
      }
    }
    expect([linears, others]).toEqual([14, 4]);
  });

  /** (code - zero) scale; exact in float64. */
  function dequantize(
    stored: ReadonlyMap<string, StoredTensor>,
    name: string,
    columns: number,
  ): Float64Array {
    const [codes, scale, zero] = ["codes", "scale", "zero"].map((part) =>
      tensorNamed(stored, `${name}.${part}`),
    ) as [StoredTensor, StoredTensor, StoredTensor];
    const groups = Math.ceil(columns / GROUP);
    expect([codes.dtype, scale.dtype, zero.dtype]).toEqual(["U8", "F16", "U8"]);
    expect(scale.shape).toEqual([codes.shape[0], groups]);
    expect(zero.shape).toEqual(scale.shape);
    expect(codes.bytes.every((code) => code < 16)).toBe(true);
    const [s, z] = [numbersOf(scale), numbersOf(zero)];
    return numbersOf(codes).map((code, i) => {
      const at = Math.floor(i / columns) * groups + Math.floor((i % columns) / GROUP);
      return (code - (z[at] as number)) * (s[at] as number);
    });
  }
});

describe("job.json and aq_config.json", () => {
  it("tell what was done, enough to repeat it", () => {
    const { pplBefore, pplAfter, blocks } = run.result;
    const hash = (bytes: Uint8Array | string) => createHash("sha256").update(bytes).digest("hex");
    const hashOf = (...parts: string[]) => hash(fs.readFileSync(path.join(...parts)));
    const clips = readAqConfig(out)?.tokenClips ?? [];
    expect(readJson(out, "aq", "job.json")).toEqual({
      format: 1,
      writtenBy: `aq-native ${packageVersion()}`,
      status: "done",
      model: source,
      text: BOOKS,
      blocks: 2,
      identity: {
        version: packageVersion(),
        model: {
          config: hashOf(source, "config.json"),
          weights: Object.fromEntries(SHARDS.map((file) => [file, hashOf(source, file)])),
        },
        calibration: { windows: 3, seqlen: 64, tokens: expect.stringMatching(/^[0-9a-f]{64}$/) },
        evaluation: { windows: 16, seqlen: 64, tokens: expect.stringMatching(/^[0-9a-f]{64}$/) },
        settings: expect.objectContaining({
          scheme: { wbits: 4, abits: 4, groupSize: GROUP, symmetric: false },
          recipe: expect.objectContaining({ sites: true, weightClip: true, tokenClip: true }),
          train: expect.objectContaining({ alpha: 0.5, sf: 0.1, letLr: 5e-3, lwcLr: 1e-2 }),
          sampling: "sequential",
          seed: 0,
        }),
      },
      notes: run.notes,
      pplBefore,
      finished: blocks.map((report, i) => ({
        sha256: hashOf(out, "aq", "blocks", `block-000${i}.safetensors`),
        report,
        tokenClips: clips[i],
      })),
      seconds: expect.any(Number),
      result: { pplBefore, pplAfter, seconds: expect.any(Number), blocks },
    });
  });

  it("hold what evaluation needs: bits and the learned clips of each block", () => {
    const json = readJson(out, "aq_config.json");
    expect(json).toMatchObject({
      format: 1,
      written_by: `aq-native ${packageVersion()}`,
      wbits: 4,
      abits: 4,
      group_size: GROUP,
      symmetric: false,
      recipe: "affine",
      sites: ["updown", "norm.norm1", "norm.norm2", "vo", "qk-pairs"],
    });
    const config = readAqConfig(out);
    expect(config?.tokenClips).toHaveLength(2);
    for (const clips of config?.tokenClips ?? []) {
      expect(Object.keys(clips)).toEqual(["norm1", "q", "k", "v", "o", "norm2", "down"]);
      for (const logit of Object.values(clips)) {
        expect(logit).not.toBe(4);
        expect(Math.abs(logit - 4)).toBeLessThan(0.1);
      }
    }
  });
});

describe("evaluating the folder", () => {
  it("gives the perplexity that the run measured", async () => {
    const { evaluation, notes } = loadCalibration(BOOKS, loadTokenizer(source), SMALL.seqlen, {
      nsamples: SMALL.nsamples,
      calibSource: "text",
      sampling: "sequential",
      seed: 0,
    });
    const clips = readAqConfig(out)?.tokenClips ?? [];
    const activations = { bits: 4, clips };
    const after = await withModel(out, (model) =>
      perplexity({ ...model, activations }, evaluation),
    );
    expect(after.ppl).toBe(run.result.pplAfter);
    const before = await withModel(source, (model) => perplexity(model, evaluation));
    expect(before.ppl).toBe(run.result.pplBefore);
    for (const note of notes) expect(run.notes).toContain(note);
  });

  it("gives the states that the run propagated: the stream errors of its report", () => {
    const ids = loadTokenizer(source).encode(fs.readFileSync(BOOKS, "utf8"));
    const windows = sequentialWindows(ids, SMALL.seqlen, SMALL.nsamples);
    const activations = { bits: 4, clips: readAqConfig(out)?.tokenClips ?? [] };
    /** Squared distances and sizes of the states after each block, over all windows. */
    const sums = [0, 1].map(() => ({ apart: 0, size: 0 }));
    for (const window of windows) {
      const states = [source, out].map((dir) => {
        const list: Float32Array[] = [];
        withModel(dir, (model) => {
          const quantizers = dir === out ? activations : null;
          return forwardLogits({ ...model, activations: quantizers }, window, (x) => list.push(x));
        });
        return list;
      }) as [Float32Array[], Float32Array[]];
      for (const [block, sum] of sums.entries()) {
        const [full, quantized] = states.map((list) => list[block + 1] as Float32Array);
        for (const [i, x] of (full as Float32Array).entries()) {
          sum.apart += (x - (quantized?.[i] as number)) ** 2;
          sum.size += x ** 2;
        }
      }
    }
    expect(run.result.blocks.map(({ streamError }) => streamError)).toEqual(
      sums.map(({ apart, size }) => expect.closeTo(Math.sqrt(apart / size), 6)),
    );
  });

  it("quantizes activations as calibrated, unless told otherwise", async () => {
    const options = { model: out, text: BOOKS, seqlen: 64, windows: 4, device: "cpu" } as const;
    const measure = async (abits?: number): Promise<number> =>
      (await evaluate(abits === undefined ? options : { ...options, abits })).ppl;
    const [asCalibrated, four, eight, none] = [
      await measure(),
      await measure(4),
      await measure(8),
      await measure(16),
    ];
    expect(asCalibrated).toBe(four);
    expect(new Set([four, eight, none]).size).toBe(3);
    expect(eight / none).toBeCloseTo(1, 1);
    expect(four).toBeGreaterThan(none);
    const plain = await evaluate({ ...options, model: source });
    expect((await evaluate({ ...options, model: source, abits: 4 })).ppl).toBeGreaterThan(
      plain.ppl,
    );
  });

  it("shows in inspect what it is", () => {
    expect(inspect({ model: out }).quantized).toEqual({ wbits: 4, abits: 4, groupSize: GROUP });
    expect(inspect({ model: TRAINED }).quantized).toBeNull();
  });
});

describe("quantizing again", () => {
  it("is refused for what already is quantized", async () => {
    const again = smallRun({ model: out, out: path.join(temp, "again") });
    await expectAqRejection(again, "AQ_MODEL", out, "already quantized", "aq_config.json");
    const packed = path.join(temp, "packed");
    fs.cpSync(source, packed, { recursive: true });
    const config = { ...readJson(packed, "config.json"), quantization_config: { bits: 4 } };
    fs.writeFileSync(path.join(packed, "config.json"), JSON.stringify(config));
    const other = smallRun({ model: packed, out: path.join(temp, "again") });
    await expectAqRejection(other, "AQ_MODEL", packed, "quantization_config");
    expect(fs.existsSync(path.join(temp, "again"))).toBe(false);
  });

  it("into the folder of another run, or the source, is refused before any work", async () => {
    const before = fs.readFileSync(path.join(out, "aq", "job.json"));
    await expectAqRejection(smallRun({ model: source, out }), "AQ_ARG", out, "another run");
    await expectAqRejection(smallRun({ model: source, out: source }), "AQ_ARG", source);
    expect(fs.readFileSync(path.join(out, "aq", "job.json")).equals(before)).toBe(true);
    openCheckpoint(source).close();
  });

  it("with overwrite replaces all of it", async () => {
    const target = path.join(temp, "twice");
    await smallRun({ model: source, out: target, recipe: "rtn", wbits: 3, abits: 4 });
    const rtn = readJson(target, "aq_config.json");
    expect(rtn).toMatchObject({ sites: [], activations: { bits: 4, clip_logits: [{}, {}] } });
    await smallRun({ model: source, out: target, recipe: "rtn", wbits: 8, overwrite: true });
    expect(readJson(target, "aq_config.json")).toMatchObject({ wbits: 8, activations: null });
    expect(filesBelow(target)).toEqual(filesBelow(out));
    const { ppl } = await evaluate({ model: target, text: BOOKS, seqlen: 64, windows: 4 });
    const full = await evaluate({ model: source, text: BOOKS, seqlen: 64, windows: 4 });
    expect(ppl / full.ppl).toBeCloseTo(1, 1);
  });
});
