import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { type Checkpoint, openCheckpoint } from "../lib/checkpoint/folder.ts";
import { OutputFolder } from "../lib/checkpoint/output-folder.ts";
import { AqError } from "../lib/errors.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { writeFiles } from "./helpers/safetensors-file.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const fixtures = path.join(import.meta.dirname, "fixtures");
const DOWN = "model.layers.0.mlp.down_proj.weight";

async function withSource(
  name: string,
  use: (source: Checkpoint, out: string) => Promise<void>,
): Promise<void> {
  const source = openCheckpoint(path.join(fixtures, name));
  try {
    await use(source, path.join(tempFolder(), "out"));
  } finally {
    source.close();
  }
}

const copyAll = (): undefined => undefined;

describe("writing an output folder", () => {
  it("copies shards byte for byte when nothing is replaced", async () => {
    await withSource("tiny/sharded", async (source, out) => {
      const folder = OutputFolder.claim(out, { source: source.dir });
      await folder.assemble({ source, config: source.config, tensorBytes: copyAll });
      for (const { file } of source.shards) {
        const [a, b] = [source.dir, out].map((dir) => fs.readFileSync(path.join(dir, file)));
        const data = (bytes: Buffer): Buffer => bytes.subarray(8 + Number(bytes.readBigUInt64LE()));
        expect(data(b as Buffer).equals(data(a as Buffer))).toBe(true);
      }
      const copy = openCheckpoint(out);
      expect(copy.index).toEqual(source.index);
      expect([...copy.tensors.keys()]).toEqual([...source.tensors.keys()]);
      copy.close();
    });
  });

  it("replaces tensors, spells config.json like the source, and copies the tokenizer", async () => {
    await withSource("llama-gqa-4m", async (source, out) => {
      const config = { ...source.config, aq: { wbits: 3 } };
      const fresh = new Uint8Array(source.info(DOWN).bytes).fill(60);
      const asked: string[] = [];
      await OutputFolder.claim(out, { source: source.dir }).assemble({
        source,
        config,
        tensorBytes: async ({ name }) => {
          asked.push(name);
          return name === DOWN ? fresh : undefined;
        },
        extraJson: { "aq_report.json": { done: true } },
      });
      expect(asked).toEqual([...source.tensors.keys()]);
      const text = fs.readFileSync(path.join(out, "config.json"), "utf8");
      expect(text).toContain('"attention_dropout": 0.0,');
      expect(text).toContain('"rope_theta": 10000.0,');
      const copy = openCheckpoint(out);
      expect(copy.config).toEqual(config);
      expect(copy.readBytes(DOWN).equals(fresh)).toBe(true);
      const other = "model.embed_tokens.weight";
      expect(copy.readBytes(other).equals(source.readBytes(other))).toBe(true);
      copy.close();
      expect(fs.readdirSync(out).sort()).toEqual([
        "aq_report.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
      ]);
      const name = "tokenizer.json";
      const [a, b] = [source.dir, out].map((dir) => fs.readFileSync(path.join(dir, name)));
      expect((b as Buffer).equals(a as Buffer)).toBe(true);
    });
  });

  it("leaves the old files alone when it fails, and takes their place when it succeeds", async () => {
    await withSource("tiny/gqa", async (source, out) => {
      const first = OutputFolder.claim(out, { source: source.dir });
      const content = { source, config: source.config, tensorBytes: copyAll };
      await first.assemble(content);
      writeFiles(out, { "model-00001-of-00001.safetensors": "old", "tokenizer.model": "old" });
      writeFiles(out, { "notes.txt": "mine" });
      const before = fs.readdirSync(out);
      const again = OutputFolder.claim(out, { source: source.dir, overwrite: true });
      const fail = (error: unknown) => () => Promise.reject(error);
      const broken = new AqError("AQ_NUMERIC", "no");
      await expectAqRejection(
        again.assemble({ ...content, tensorBytes: fail(broken) }),
        "AQ_NUMERIC",
      );
      const bug = new TypeError("a bug");
      await expect(again.assemble({ ...content, tensorBytes: fail(bug) })).rejects.toBe(bug);
      const short = again.assemble({ ...content, tensorBytes: () => new Uint8Array(3) });
      await expectAqRejection(short, "AQ_INTERNAL", "expected");
      const signal = AbortSignal.abort();
      await expectAqRejection(again.assemble({ ...content, signal }), "AQ_STOPPED");
      expect(fs.readdirSync(out)).toEqual(before);
      await again.assemble(content);
      expect(fs.readdirSync(out).sort()).toEqual(["config.json", "model.safetensors", "notes.txt"]);
    });
  });

  it("removes the staging folder of a run that was killed", async () => {
    await withSource("tiny/gqa", async (source, out) => {
      fs.mkdirSync(path.join(out, ".staging-1"), { recursive: true });
      writeFiles(path.join(out, ".staging-1"), { "model.safetensors": "half" });
      const folder = OutputFolder.claim(out, { source: source.dir });
      await folder.assemble({ source, config: source.config, tensorBytes: copyAll });
      expect(fs.readdirSync(out).sort()).toEqual(["config.json", "model.safetensors"]);
    });
  });

  it("refuses companions that lead out of the source folder", async () => {
    const dir = path.join(tempFolder(), "model");
    fs.cpSync(path.join(fixtures, "tiny/gqa"), dir, { recursive: true });
    const secret = path.join(tempFolder(), "secret");
    fs.writeFileSync(secret, "secret");
    fs.symlinkSync(secret, path.join(dir, "LICENSE"));
    const source = openCheckpoint(dir);
    const out = path.join(tempFolder(), "out");
    const folder = OutputFolder.claim(out, { source: dir });
    const done = folder.assemble({ source, config: {}, tensorBytes: copyAll });
    await expectAqRejection(done, "AQ_FILE", "LICENSE", "outside");
    expect(fs.readdirSync(out)).toEqual([]);
    source.close();
  });
});

describe("claiming an output folder", () => {
  it("creates it, accepts it when empty, and refuses it with files unless told otherwise", () => {
    const source = tempFolder();
    const out = path.join(tempFolder(), "a", "b");
    expect(OutputFolder.claim(out, { source }).dir).toBe(out);
    OutputFolder.claim(out, { source });
    writeFiles(out, { aq: "", x: "" });
    expectAqError(() => OutputFolder.claim(out, { source, keep: ["aq"] }), "AQ_ARG", "(x)");
    OutputFolder.claim(out, { source, keep: ["aq", "x"] });
    OutputFolder.claim(out, { source, overwrite: true });
  });

  it("refuses the source itself, by any name, and a file", () => {
    const dir = tempFolder();
    const source = path.join(dir, "model");
    fs.mkdirSync(source);
    fs.symlinkSync("model", path.join(dir, "link"));
    writeFiles(dir, { file: "" });
    const claim = (name: string) => () =>
      OutputFolder.claim(path.join(dir, name), { source, overwrite: true });
    expectAqError(claim("model"), "AQ_ARG", "own folder");
    expectAqError(claim("link"), "AQ_ARG", "own folder");
    expectAqError(claim("file"), "AQ_FILE", "already there");
    expectAqError(claim("file/below"), "AQ_FILE", "not a folder");
  });
});
