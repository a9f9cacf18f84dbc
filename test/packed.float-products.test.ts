// Folders of 4-bit floats compute what their codes stand for: multiplied as codes, as float32 numbers, and
// as other programs' layouts hold them; the same bits on any number of threads.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Eager } from "../lib/autograd/graph.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { forwardLogits, perplexity } from "../lib/eval/perplexity.ts";
import { ResidentBlock } from "../lib/eval/resident-block.ts";
import { evaluate } from "../lib/evaluate.ts";
import { exportRun } from "../lib/export-run.ts";
import type { FormatName } from "../lib/export-types.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { inspect } from "../lib/inspect.ts";
import { setThreads, threads } from "../lib/tensor/device.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { BOOKS, firstBlocks } from "./helpers/fixture.ts";
import { readJson, smallRun } from "./helpers/small-run.ts";
import { floatMatrix } from "./helpers/synthetic-floats.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";
import { numbersOf, readTensors, type StoredTensor, writeTensors } from "./helpers/tensor-file.ts";

const newFolder = sharedFolders();
const atStart = threads();
afterAll(() => setThreads(atStart));

const TOKENS = 96;
let source = "";

beforeAll(() => {
  source = firstBlocks(newFolder("source"), 2);
});

type Options = Partial<QuantizeOptions>;

async function quantized(options: Options): Promise<string> {
  const out = path.join(newFolder("run"), "out");
  await smallRun({ model: source, recipe: "rtn", nsamples: 1, ...options, out });
  return out;
}

async function exported(run: string, format: FormatName): Promise<string> {
  const out = path.join(newFolder(format), "model");
  await exportRun({ run, format, out });
  return out;
}

/** The folder with numbers instead of codes. */
function asNumbers(packed: string, numbers: "nvfp4" | "mxfp4"): string {
  const dir = path.join(newFolder("numbers"), "model");
  fs.cpSync(packed, dir, { recursive: true });
  const { quantization_config: _, ...config } = readJson(packed, "config.json");
  fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify(config));
  const file = path.join(dir, "model.safetensors");
  const stored = readTensors(file);
  const tensors = new Map<string, StoredTensor>();
  for (const [name, tensor] of stored) {
    const [, weight, part] = /^(.*\.weight)\.(codes|scale|global)$/.exec(name) ?? [];
    if (weight === undefined) tensors.set(name, tensor);
    if (weight === undefined || part !== "codes") continue;
    const [rows = 0, half = 0] = tensor.shape;
    const codes = Uint8Array.from({ length: 2 * rows * half }, (_, at) =>
      at % 2 === 0
        ? (tensor.bytes[at >> 1] as number) & 15
        : (tensor.bytes[at >> 1] as number) >> 4,
    );
    const scaleBytes = (stored.get(`${weight}.scale`) as StoredTensor).bytes;
    const one = stored.get(`${weight}.global`);
    const global = one ? (numbersOf(one)[0] as number) : null;
    const group = numbers === "nvfp4" ? 16 : 32;
    const w = floatMatrix({ numbers, group, codes, scaleBytes, global, input: null }, 2 * half);
    tensors.set(weight, { dtype: "F32", shape: [rows, 2 * half], bytes: new Uint8Array(w.buffer) });
  }
  writeTensors(file, tensors);
  return dir;
}

interface Measured {
  readonly logits: Float32Array;
  readonly ppl: number;
}

async function measure(dir: string): Promise<Measured> {
  const model = openLanguageModel(dir, "cpu");
  try {
    const ids = model.tokenizer.encode(fs.readFileSync(BOOKS, "utf8").slice(0, 4000));
    const windows = sequentialWindows(ids, TOKENS, 3);
    const logits = forwardLogits(model, windows[0] as Int32Array);
    return { logits, ppl: (await perplexity(model, windows)).ppl };
  } finally {
    model.close();
  }
}

/** Linears of a block that are multiplied as codes. */
function multipliedAsCodes(dir: string): number {
  const model = openLanguageModel(dir, "cpu");
  const block = new ResidentBlock(model, 0);
  try {
    return Object.values(block.weights(new Eager())).filter(({ value }) => value.packed).length;
  } finally {
    block.dispose();
    model.close();
  }
}

const bytesOf = ({ logits }: Measured): Buffer => Buffer.from(logits.buffer);

/** Largest difference in parts of the largest logit. */
function apart(a: Measured, b: Measured): number {
  const top = b.logits.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const off = b.logits.reduce((m, x, i) => Math.max(m, Math.abs(x - (a.logits[i] as number))), 0);
  return off / top;
}

describe.each([
  // 1 / g rounds elsewhere than s / g; a rounding of an activation that falls the other way moves logits.
  ["NVFP4A16", "nvfp4", 1e-5, 1e-6],
  ["NVFP4", "nvfp4", 0.3, 0.02],
  ["MXFP4A16", "mxfp4", 1e-5, 1e-6],
  ["MXFP4", "mxfp4", 1e-5, 1e-6],
] as const)("%s", (scheme, numbers, logits, ppl) => {
  it("computes with codes what it computes with numbers", async () => {
    const packed = await exported(await quantized({ scheme }), "aq");
    const plain = asNumbers(packed, numbers);
    expect([multipliedAsCodes(packed), multipliedAsCodes(plain)]).toEqual([7, 0]);
    const [actual, expected] = [await measure(packed), await measure(plain)];
    expect(apart(actual, expected)).toBeLessThan(logits);
    expect(Math.abs(actual.ppl / expected.ppl - 1)).toBeLessThan(ppl);
  });

  it("is the same in every layout, and on one thread, two, and again", async () => {
    const keep = ["layers.0.mlp.down_proj", "layers.1.self_attn.*"];
    const run = await quantized({ scheme, keep });
    const own = await exported(run, "aq");
    expect(multipliedAsCodes(own)).toBe(6);
    const first = bytesOf(await measure(own));
    const formats: FormatName[] = ["compressed-tensors"];
    if (numbers === "nvfp4") formats.push("modelopt");
    for (const [i, format] of formats.entries()) {
      const other = await exported(run, format);
      setThreads(i + 1);
      expect(bytesOf(await measure(other)).equals(first), format).toBe(true);
      expect(inspect({ model: other }).quantized).toMatchObject({
        wbits: 4,
        abits: scheme.endsWith("A16") ? 16 : 4,
        groupSize: numbers === "nvfp4" ? 16 : 32,
      });
    }
    for (const count of [2, 2, 1]) {
      setThreads(count);
      expect(bytesOf(await measure(own)).equals(first)).toBe(true);
    }
  });
});

describe("linears that are not quantized", () => {
  it("read full activations in folders of whole numbers as well", async () => {
    const scheme = { wbits: 8, abits: 8, symmetric: true, tokenClip: false };
    const run = await quantized({ ...scheme, keep: ["q_proj", "k_proj", "v_proj", "*.mlp.*"] });
    const folder = await exported(run, "compressed-tensors");
    const text = { text: BOOKS, seqlen: 64, windows: 4 };
    const [all, none] = [
      await evaluate({ model: folder, ...text, abits: 16 }),
      await evaluate({ model: folder, ...text }),
    ];
    const whole = await exported(await quantized(scheme), "compressed-tensors");
    const [other, otherNone] = [
      await evaluate({ model: whole, ...text, abits: 16 }),
      await evaluate({ model: whole, ...text }),
    ];
    // What only o_proj reads moves it less than all of it does.
    const moved = Math.abs(none.ppl / all.ppl - 1);
    expect(moved).toBeGreaterThan(0);
    expect(moved).toBeLessThan(Math.abs(otherNone.ppl / other.ppl - 1));
  });
});
