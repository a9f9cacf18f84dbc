// Which run a folder is compared with, what is said where that cannot be done, and the command.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { Api } from "../lib/cli/api.ts";
import { runVerify } from "../lib/cli/verify.ts";
import { exportRun } from "../lib/export-run.ts";
import { compareNumbers } from "../lib/verify/compare.ts";
import { verify } from "../lib/verify.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { fakeIo } from "./helpers/fake-io.ts";
import { firstBlocks } from "./helpers/fixture.ts";
import { flip, tensorPlaces } from "./helpers/places.ts";
import { readJson, smallRun } from "./helpers/small-run.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";
import { readTensors, writeTensors } from "./helpers/tensor-file.ts";

const newFolder = sharedFolders();
/** Two runs of one model beside each other, and what was exported of the first. */
let home = "";
let out = "";
let other = "";
let inside = "";
let beside = "";

beforeAll(async () => {
  home = newFolder("home");
  const source = firstBlocks(newFolder("source"), 1);
  [out, other] = ["run", "other"].map((name) => path.join(home, name)) as [string, string];
  await smallRun({ model: source, out, recipe: "rtn", groupSize: 32 });
  await smallRun({ model: source, out: other, recipe: "rtn", groupSize: 64 });
  inside = path.join(out, "awq");
  beside = path.join(home, "exported");
  await exportRun({ run: out, out: inside, format: "awq" });
  await exportRun({ run: out, out: beside, format: "gptq_v2" });
});

/** A copy of a folder that may be changed, with nothing beside it. */
function copyOf(dir: string): string {
  const copy = path.join(newFolder("copy"), "copy");
  fs.cpSync(dir, copy, { recursive: true });
  return copy;
}

describe("the run", () => {
  it("is above a folder, beside it with its blocks, or named", async () => {
    expect((await verify({ dir: inside })).run).toBe(out);
    expect((await verify({ dir: beside })).run).toBe(out);
    expect((await verify({ dir: copyOf(beside), run: out })).folders).toMatchObject([
      { format: "gptq_v2" },
    ]);
  });

  it("of all that lies in it is found too, with a file of one format", async () => {
    const { folders } = await verify({ dir: out });
    expect(folders.map(({ format }) => format)).toEqual(["hf", "awq"]);
    const dir = path.join(out, "gguf");
    await exportRun({ run: out, out: dir, format: "gguf" });
    const file = path.join(dir, "model.gguf");
    expect((await verify({ dir: file })).folders).toMatchObject([{ format: "gguf", path: file }]);
    fs.rmSync(dir, { recursive: true });
  });

  it("must be there, and the right one", async () => {
    await expectAqRejection(verify({ dir: copyOf(beside) }), "AQ_ARG", "No run", "--run");
    const wrong = verify({ dir: beside, run: other });
    await expectAqRejection(wrong, "AQ_ARG", beside, other, "another run");
    await expectAqRejection(verify({ dir: inside, run: home }), "AQ_ARG", home, "no run");
    const nothing = newFolder("nothing");
    await expectAqRejection(verify({ dir: nothing, run: out }), "AQ_FILE", nothing, "config.json");
    const missing = path.join(home, "missing");
    await expectAqRejection(verify({ dir: missing }), "AQ_FILE", missing, "does not exist");
  });

  it("must be finished, and whole", async () => {
    const running = copyOf(out);
    const job = path.join(running, "aq", "job.json");
    const text = fs.readFileSync(job, "utf8");
    fs.writeFileSync(job, JSON.stringify({ ...JSON.parse(text), status: "running", result: null }));
    await expectAqRejection(verify({ dir: inside, run: running }), "AQ_ARG", "not finished");
    fs.writeFileSync(job, text);
    const block = path.join(running, "aq", "blocks", "block-0000.safetensors");
    flip(block, fs.statSync(block).size - 1, 0);
    await expectAqRejection(verify({ dir: inside, run: running }), "AQ_FILE", block, "SHA-256");
  });
});

describe("a difference", () => {
  it("names the tensor, the place, and both values", async () => {
    const dir = copyOf(beside);
    const place = tensorPlaces(dir).find(({ tensor }) =>
      tensor.endsWith("layers.0.mlp.up_proj.qweight"),
    );
    if (!place) throw new Error("no such tensor");
    // Row 0 of the words holds codes 0 to 7 of each column's output; word 5 is output 5.
    flip(place.file, place.offset + 4 * 5 + 1, 6);
    const state = readTensors(path.join(out, "aq", "blocks", "block-0000.safetensors"));
    const codes = state.get("model.layers.0.mlp.up_proj.weight.codes")?.bytes as Uint8Array;
    // Bit 6 of byte 1 is bit 2 of code 3.
    const code = codes[5 * 256 + 3] as number;
    await expectAqRejection(
      verify({ dir, run: out }),
      "AQ_FORMAT",
      '"model.layers.0.mlp.up_proj.weight"',
      dir,
      "code [5, 3]",
      `expected ${code}, got ${code ^ 4}`,
    );
  });

  it("is one of bits: a zero's sign counts", () => {
    const place = { tensor: "t", path: "file", what: "zero" };
    const zeros = Float32Array.of(3, 0);
    compareNumbers(place, zeros, Float32Array.of(3, 0), 1);
    expectAqError(
      () => compareNumbers(place, Float32Array.of(3, -0), zeros, 1),
      "AQ_FORMAT",
      "zero [1, 0]: expected 0, got -0",
    );
  });

  it("is seen in tensors that are not quantized, their names, and what describes them", async () => {
    const file = "model.safetensors";
    const change = async (
      alter: (dir: string) => void,
      ...parts: readonly string[]
    ): Promise<void> => {
      const dir = copyOf(beside);
      alter(dir);
      await expectAqRejection(verify({ dir, run: out }), "AQ_FORMAT", dir, ...parts);
    };
    const inTensors =
      (alter: (tensors: ReturnType<typeof readTensors>) => void) =>
      (dir: string): void => {
        const tensors = readTensors(path.join(dir, file));
        alter(tensors);
        writeTensors(path.join(dir, file), tensors);
      };
    const norm = "model.layers.0.input_layernorm.weight";
    const flipByte = (name: string, at: number) =>
      inTensors((tensors) => {
        const bytes = tensors.get(name)?.bytes as Uint8Array;
        bytes[at] = (bytes[at] as number) ^ 1;
      });
    await change(flipByte(norm, 6), norm, "value [3]");
    await change(flipByte("model.embed_tokens.weight", 2 * 256), "value [1, 0]");
    await change(
      inTensors((tensors) => tensors.set("extra", tensors.get(norm) as never)),
      '"extra"',
      "no tensor of the run",
    );
    const inConfig = (more: object) => (dir: string) => {
      const config = { ...readJson(dir, "config.json"), ...more };
      fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify(config));
    };
    await change(inConfig({ rms_norm_eps: 1e-3 }), '"rms_norm_eps"', "expected 0.00001, got 0.001");
    const said = readJson(beside, "config.json")["quantization_config"] as object;
    await change(inConfig({ quantization_config: { ...said, group_size: 64 } }), "group size 32");
    await change(inConfig({ quantization_config: { ...said, sym: true } }), "symmetric");
  });
});

describe("the readers", () => {
  it("share no code with the writers", () => {
    const root = path.join(import.meta.dirname, "..", "lib");
    const files = ["verify", "packed"].flatMap((folder) =>
      fs
        .readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
        .map((name) => path.join(root, folder, name)),
    );
    const sources = [...files.filter((name) => name.endsWith(".ts")), path.join(root, "verify.ts")];
    expect(sources.length).toBeGreaterThan(20);
    for (const file of sources) {
      expect(fs.readFileSync(file, "utf8"), file).not.toMatch(/from "[^"]*(formats\/|util\/half)/);
    }
  });
});

describe("the command", () => {
  const load = async (): Promise<Api> => ({ verify }) as unknown as Api;

  it("says a line for each format", async () => {
    const io = fakeIo();
    await runVerify({ dir: out }, {}, io, load);
    const lines = io.stdout.text.trimEnd().split("\n");
    expect(lines[0]).toMatch(
      /^hf: the same as the run, 7 linears of 737,280 codes; 4 other tensors/,
    );
    expect(lines).toContainEqual(
      `awq: the same as the run, 7 linears of 737,280 codes, 23,040 scales, 23,040 zeros; 4 other tensors of 1,049,344 numbers (${inside})`,
    );
  });

  it("says the same as JSON, and stops when asked", async () => {
    const io = fakeIo();
    await runVerify({ dir: inside }, { json: true }, io, load);
    expect(JSON.parse(io.stdout.text)).toMatchObject({
      event: "done",
      run: out,
      folders: [{ format: "awq", linears: 7, codes: 737_280, others: 4 }],
    });
    const stopped = verify({ dir: inside }, { signal: AbortSignal.abort() });
    await expectAqRejection(stopped, "AQ_STOPPED", "stopped");
  });
});
