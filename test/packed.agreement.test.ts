// A packed folder computes what its codes stand for: it is compared with a plain folder of float32 that
// holds (code - zero) scale for every linear, made here without the package's own unpacking. Beside
// these two, activations quantizers see the same numbers; weights that were rounded to the model's dtype
// would send roundings of theirs the other way, which changes logits of W4A4 by a quarter.
import * as fs from "node:fs";
import * as path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Eager } from "../lib/autograd/graph.ts";
import { sequentialWindows } from "../lib/data/windows.ts";
import { forwardLogits, perplexity } from "../lib/eval/perplexity.ts";
import { ResidentBlock } from "../lib/eval/resident-block.ts";
import { exportRun } from "../lib/export-run.ts";
import { openLanguageModel } from "../lib/generate/open.ts";
import { setThreads, threads } from "../lib/tensor/device.ts";
import type { QuantizeOptions } from "../lib/types.ts";
import { BOOKS, OPT, TRAINED } from "./helpers/fixture.ts";
import { readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { numbersOf, readTensors, type StoredTensor, writeTensors } from "./helpers/tensor-file.ts";
import { byteStreamValue } from "./helpers/unpack.ts";

const WINDOWS = 3;
const TOKENS = 96;
const RTN = { model: TRAINED, recipe: "rtn", nsamples: 1 } as const;

const tempFolder = tempFolders();
const atStart = threads();
afterAll(() => setThreads(atStart));

type Options = Partial<QuantizeOptions>;

/** W = (code - zero) scale in float32, from the tensors of our own format. */
function weightOf(
  tensors: ReadonlyMap<string, StoredTensor>,
  name: string,
  bits: number,
  columns: number,
): StoredTensor {
  const part = (suffix: string): StoredTensor => {
    const found = tensors.get(`${name}.${suffix}`);
    if (!found) throw new Error(`no ${suffix} of ${name}`);
    return found;
  };
  const { bytes: codes, shape } = part("codes");
  const { bytes: zeros } = part("zero");
  const scales = numbersOf(part("scale"));
  const rows = shape[0] as number;
  const groups = scales.length / rows;
  const group = Math.ceil(columns / groups);
  const w = new Float32Array(rows * columns);
  const rowBytes = (count: number): number => Math.ceil((count * bits) / 8);
  for (let o = 0; o < rows; o++) {
    for (let i = 0; i < columns; i++) {
      const g = Math.floor(i / group);
      const code = byteStreamValue(codes, o * rowBytes(columns), i, bits);
      const zero = byteStreamValue(zeros, o * rowBytes(groups), g, bits);
      w[o * columns + i] = (code - zero) * (scales[o * groups + g] as number);
    }
  }
  return { dtype: "F32", shape: [rows, columns], bytes: new Uint8Array(w.buffer) };
}

/** The folder with numbers instead of codes. */
function asNumbers(packed: string, bits: number): string {
  const dir = path.join(tempFolder(), "numbers");
  fs.cpSync(packed, dir, { recursive: true });
  const { quantization_config: _, ...config } = readJson(packed, "config.json");
  fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify(config));
  const source = openLanguageModel(packed, "cpu");
  const shapes = new Map<string, number>();
  for (let i = 0; i < source.model.shape.blocks; i++) {
    for (const { name, shape } of source.model.blockTensors(i)) {
      shapes.set(name, shape.at(-1) as number);
    }
  }
  source.close();
  const file = path.join(dir, "model.safetensors");
  const stored = readTensors(file);
  const tensors = new Map<string, StoredTensor>();
  for (const [name, tensor] of stored) {
    const [, weight, suffix] = /^(.*\.weight)\.(codes|scale|zero)$/.exec(name) ?? [];
    if (weight === undefined) tensors.set(name, tensor);
    if (weight === undefined || suffix !== "codes") continue;
    tensors.set(weight, weightOf(stored, weight, bits, shapes.get(weight) as number));
  }
  writeTensors(file, tensors);
  return dir;
}

/** A run's codes as a packed folder, and the numbers that they stand for. */
async function folders(options: Options): Promise<readonly [packed: string, numbers: string]> {
  const out = path.join(tempFolder(), "run");
  const packed = path.join(tempFolder(), "packed");
  await smallRun({ ...RTN, ...options, out });
  await exportRun({ run: out, format: "aq", out: packed });
  return [packed, asNumbers(packed, options.wbits ?? 4)];
}

interface Measured {
  readonly logits: Float32Array;
  readonly ppl: number;
}

async function measure(dir: string): Promise<Measured> {
  const source = openLanguageModel(dir, "cpu");
  try {
    const ids = source.tokenizer.encode(fs.readFileSync(BOOKS, "utf8").slice(0, 4000));
    const windows = sequentialWindows(ids, TOKENS, WINDOWS);
    const logits = forwardLogits(source, windows[0] as Int32Array);
    return { logits, ppl: (await perplexity(source, windows)).ppl };
  } finally {
    source.close();
  }
}

/** Linears of the first block that are multiplied as codes. */
function multipliedAsCodes(dir: string): number {
  const source = openLanguageModel(dir, "cpu");
  const block = new ResidentBlock(source, 0);
  try {
    return Object.values(block.weights(new Eager())).filter(({ value }) => value.packed).length;
  } finally {
    block.dispose();
    source.close();
  }
}

/** Largest difference in parts of the largest logit. */
function apart(actual: Float32Array, expected: Float32Array): number {
  let [most, top] = [0, 0];
  for (const [i, x] of expected.entries()) {
    most = Math.max(most, Math.abs(x - (actual[i] as number)));
    top = Math.max(top, Math.abs(x));
  }
  return most / top;
}

const CASES: readonly (readonly [string, Options])[] = [
  ["W4A16 g32", { wbits: 4, groupSize: 32 }],
  ["W3A16", { wbits: 3 }],
  ["W2A16 g32", { wbits: 2, groupSize: 32 }],
  ["W4A4", { wbits: 4, abits: 4 }],
  ["W8A8", { wbits: 8, abits: 8 }],
];

describe("packed and fake-quantized evaluation of the same codes agree", () => {
  const own = CASES.flatMap(([name, options]) => [
    [name, options] as const,
    [`${name}, rotated, Hadamard`, { ...options, rotate: "on", hadamard: "down" }] as const,
  ]);
  it.each([
    ...own,
    ["W4A4, calibrated", { wbits: 4, abits: 4, recipe: "affine", epochs: 1 }],
    ["OPT, W4A4", { model: OPT, wbits: 4, abits: 4 }],
  ] as readonly (readonly [string, Options])[])("%s", async (_, options) => {
    const [packed, numbers] = await folders(options);
    const linears = options.model === OPT ? 6 : 7;
    expect(multipliedAsCodes(packed)).toBe(linears);
    expect(multipliedAsCodes(numbers)).toBe(0);
    const [actual, expected] = [await measure(packed), await measure(numbers)];
    expect(apart(actual.logits, expected.logits)).toBeLessThan(1e-3);
    expect(Math.abs(actual.ppl / expected.ppl - 1)).toBeLessThan(1e-3);
    // On the CPU more than that: many tokens go through the same product.
    expect(Buffer.from(actual.logits.buffer).equals(Buffer.from(expected.logits.buffer))).toBe(
      true,
    );
  });
});

describe("a packed folder gives the same bits", () => {
  it.each(CASES.slice(2))("%s: on one thread, two, and again", async (_, options) => {
    const [packed] = await folders(options);
    const logits: Buffer[] = [];
    for (const count of [1, 2, 2]) {
      setThreads(count);
      logits.push(Buffer.from((await measure(packed)).logits.buffer));
    }
    expect(logits[1]?.equals(logits[0] as Buffer)).toBe(true);
    expect(logits[2]?.equals(logits[0] as Buffer)).toBe(true);
  });
});
