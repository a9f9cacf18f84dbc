// Bad input and bad places, given to the built command: one sentence that names the trouble, the right
// exit code, and nothing that looks like a result.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSentence, type Outcome, quantizeArgs, runCommand } from "./helpers/command.ts";
import { BOOKS, type Changes, copyFixture, firstBlocks } from "./helpers/fixture.ts";
import { rawSafetensors } from "./helpers/safetensors-file.ts";
import { filesBelow } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { tensorNamed } from "./helpers/tensor-file.ts";

const tempFolder = tempFolders();
const WEIGHTS = "model.safetensors";
const UP = "model.layers.0.mlp.up_proj.weight";

let model = "";

beforeAll(() => {
  model = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  firstBlocks(model, 1);
});

afterAll(() => fs.rmSync(model, { recursive: true, force: true }));

function quantize(source: string, out: string, ...more: readonly string[]): Outcome {
  return runCommand(...quantizeArgs({ model: source, calib: BOOKS, out }), ...more);
}

/** No file of a checkpoint, whole or half, and no temporary one. */
function expectNoResult(out: string): void {
  const files = fs.existsSync(out) ? filesBelow(out) : [];
  const allowed = /^aq\/(job\.json|tokens\.bin|blocks\/block-\d{4}\.safetensors)$/;
  expect(files.filter((file) => !allowed.test(file))).toEqual([]);
}

/** A copy of the model for the test to damage. */
function copyOf(changes: Changes = {}): string {
  return copyFixture(model, tempFolder(), changes);
}

interface RawHeader {
  [name: string]: { dtype: string; shape: number[]; data_offsets: [number, number] };
}

/** A copy whose header was changed while its data was not. */
function withHeader(change: (header: RawHeader) => void): string {
  const dir = copyOf();
  const file = path.join(dir, WEIGHTS);
  const bytes = fs.readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, start)) as RawHeader;
  change(header);
  fs.writeFileSync(file, rawSafetensors(header, bytes.subarray(start)));
  return dir;
}

function entry(header: RawHeader, name: string): RawHeader[string] {
  const found = header[name];
  if (!found) throw new Error(`the fixture has no ${name}`);
  return found;
}

describe("a damaged checkpoint", () => {
  const cases: readonly [string, () => string, ...(string | RegExp)[]][] = [
    [
      "a truncated shard",
      () => {
        const dir = copyOf();
        const file = path.join(dir, WEIGHTS);
        fs.truncateSync(file, fs.statSync(file).size - 1000);
        return dir;
      },
      WEIGHTS,
      /cut|ends|bytes/,
    ],
    [
      "a header longer than its file",
      () => {
        const dir = copyOf();
        const file = path.join(dir, WEIGHTS);
        const bytes = fs.readFileSync(file);
        bytes.writeBigUInt64LE(BigInt(bytes.length), 0);
        fs.writeFileSync(file, bytes);
        return dir;
      },
      WEIGHTS,
      /header .* claims \d+ bytes/,
    ],
    [
      "overlapping tensors",
      () =>
        withHeader((header) => {
          const tensor = entry(header, UP);
          const [begin, end] = tensor.data_offsets;
          tensor.data_offsets = [begin - 64, end - 64];
        }),
      WEIGHTS,
      /overlap|gap|offset/,
    ],
    [
      "a tensor beyond the end of its file",
      () =>
        withHeader((header) => {
          const ends = Object.values(header).map(({ data_offsets }) => data_offsets?.[1] ?? 0);
          const last = Object.values(header)[ends.indexOf(Math.max(...ends))];
          last?.shape.splice(0, 1, 2 * (last.shape[0] as number));
          last?.data_offsets.splice(1, 1, 2 * Math.max(...ends) - last.data_offsets[0]);
        }),
      WEIGHTS,
      /ends|cut|beyond|bytes/,
    ],
    [
      "a missing tensor",
      () => copyOf({ tensors: (tensors) => void tensors.delete(UP) }),
      UP,
      /no tensor/,
    ],
    [
      "a tensor of the wrong shape",
      () => withHeader((header) => void entry(header, UP).shape.reverse()),
      UP,
      /\[256, 704\].*\[704, 256\]/,
    ],
    [
      "NaN in a weight",
      () =>
        copyOf({
          tensors: (tensors) => tensorNamed(tensors, UP).bytes.set([0x00, 0x7e], 2 * 12_345),
        }),
      UP,
      /NaN/,
    ],
    [
      "an unknown model_type",
      () => copyOf({ config: (config) => ({ ...config, model_type: "cabbage" }) }),
      /cabbage/,
      /llama/,
    ],
    [
      "no tokenizer",
      () => {
        const dir = copyOf();
        fs.rmSync(path.join(dir, "tokenizer.json"));
        return dir;
      },
      /no tokenizer\.json/,
    ],
  ];

  it.each(cases)("with %s", (_, make, ...parts) => {
    const out = path.join(tempFolder(), "out");
    expectSentence(quantize(make(), out), 1, ...parts);
    expectNoResult(out);
  });
});

describe("a calibration text", () => {
  it.each([
    ["that is empty", "", /empty/],
    ["shorter than a window", "It was a dark and stormy night.", /tokens, but one window needs 64/],
  ])("%s", (_, content, part) => {
    const dir = tempFolder();
    const calib = path.join(dir, "text.txt");
    fs.writeFileSync(calib, content);
    const out = path.join(dir, "out");
    expectSentence(runCommand(...quantizeArgs({ model, calib, out })), 1, part);
    expectNoResult(out);
  });
});

describe("options", () => {
  it.each([
    [["--wbits", "1"], /from 2 to 8/],
    [["--group-size", "0"], /Leave the option out/],
    [["--epcohs", "3"], /Did you mean --epochs\?/],
    [["--resume", "yes"], /auto, required, never/],
    [["--stream-memory", "lots"], /a size like 64MB/],
    [["--stream-memory", "5XB"], /a size like 64MB/],
  ])("%j", (options, part) => {
    const out = path.join(tempFolder(), "out");
    expectSentence(quantize(model, out, ...options), 2, part);
    expect(fs.existsSync(out)).toBe(false);
  });
});

describe("an output folder", () => {
  it("that is not empty is left as it is", () => {
    const out = tempFolder();
    fs.writeFileSync(path.join(out, "letter.txt"), "dear");
    expectSentence(quantize(model, out), 1, out, /not empty \(letter\.txt\)/);
    expect(filesBelow(out)).toEqual(["letter.txt"]);
  });

  it("that is the source is refused", () => {
    expectSentence(quantize(model, model), 1, /own folder/);
    expect(fs.existsSync(path.join(model, "aq"))).toBe(false);
  });

  it("below a file is refused", () => {
    const file = path.join(tempFolder(), "file");
    fs.writeFileSync(file, "");
    expectSentence(quantize(model, path.join(file, "out")), 1, /not a folder|already there/);
  });
});
