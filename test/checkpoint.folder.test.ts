import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { bytesSafetensors, writeFiles } from "./helpers/safetensors-file.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const fixtures = path.join(import.meta.dirname, "fixtures");
const INDEX = "model.safetensors.index.json";

function folder(files: Parameters<typeof writeFiles>[1]): string {
  const dir = tempFolder();
  writeFiles(dir, files);
  return dir;
}

function sharded(weightMap: object): string {
  return folder({
    "config.json": {},
    "one.safetensors": bytesSafetensors({ a: [1, 2], b: [3] }),
    "two.safetensors": bytesSafetensors({ c: [4, 5] }),
    [INDEX]: { weight_map: weightMap },
  });
}

describe("opening a checkpoint", () => {
  it("finds the tensors of one file and reads them", () => {
    const checkpoint = openCheckpoint(path.join(fixtures, "llama-gqa-4m"));
    expect(checkpoint.config["model_type"]).toBe("llama");
    expect(checkpoint.index).toBeNull();
    expect(checkpoint.quantization).toBeNull();
    expect(checkpoint.has("lm_head.weight")).toBe(false);
    const norm = checkpoint.info("model.norm.weight");
    expect(norm).toMatchObject({
      file: "model.safetensors",
      dtype: "F16",
      shape: [256],
      bytes: 512,
    });
    const file = fs.readFileSync(path.join(fixtures, "llama-gqa-4m/model.safetensors"));
    const bytes = checkpoint.readBytes("model.norm.weight");
    expect(bytes.equals(file.subarray(norm.offset, norm.offset + 512))).toBe(true);
    const part = new Uint8Array(4);
    checkpoint.readInto("model.norm.weight", part, 100, 3);
    expect([...part]).toEqual([...bytes.subarray(100, 103), 0]);
    checkpoint.close();
  });

  it("finds the tensors of several shards, in order", () => {
    const checkpoint = openCheckpoint(path.join(fixtures, "tiny/sharded"));
    expect(checkpoint.shards.map((s) => s.file)).toEqual(
      [1, 2, 3].map((i) => `model-0000${i}-of-00003.safetensors`),
    );
    expect(checkpoint.tensors.size).toBe(29);
    for (const shard of checkpoint.shards) {
      const offsets = shard.tensors.map((t) => t.offset);
      expect(offsets).toEqual([...offsets].sort((x, y) => x - y));
    }
    expect(checkpoint.info("model.layers.1.mlp.up_proj.weight").dtype).toBe("BF16");
    checkpoint.close();
  });

  it("refuses ranges outside a tensor, unknown tensors, and reading after close", () => {
    const checkpoint = openCheckpoint(
      sharded({ a: "one.safetensors", b: "one.safetensors", c: "two.safetensors" }),
    );
    const two = new Uint8Array(2);
    expectAqError(() => checkpoint.readInto("b", two), "AQ_ARG", `"b", which has 1`);
    expectAqError(() => checkpoint.readInto("a", two, -1, 1), "AQ_ARG", "bytes -1 to 0");
    expectAqError(() => checkpoint.readInto("a", two, 0, 3), "AQ_ARG");
    expectAqError(() => checkpoint.info("z"), "AQ_MODEL", 'no tensor "z"');
    checkpoint.close();
    checkpoint.close();
    expectAqError(() => checkpoint.readBytes("a"), "AQ_DISPOSED", "is closed");
  });

  it("notices a shard that was cut after opening", () => {
    const dir = sharded({ a: "one.safetensors", b: "one.safetensors", c: "two.safetensors" });
    const checkpoint = openCheckpoint(dir);
    const { offset } = checkpoint.info("c");
    fs.truncateSync(path.join(dir, "two.safetensors"), offset + 1);
    const end = `ends at byte ${offset + 1}`;
    expectAqError(() => checkpoint.readBytes("c"), "AQ_FILE", "two.safetensors", end);
    checkpoint.close();
  });

  it("shows an earlier quantization", () => {
    const quantization_config = { quant_method: "awq" };
    const dir = folder({
      "config.json": { quantization_config },
      "model.safetensors": bytesSafetensors({ a: [1] }),
    });
    const checkpoint = openCheckpoint(dir);
    expect(checkpoint.quantization).toEqual(quantization_config);
    checkpoint.close();
  });
});

describe("a folder that is no checkpoint", () => {
  it.each<[string, Parameters<typeof writeFiles>[1], string]>([
    ["no config.json", { "model.safetensors": "" }, "has no config.json"],
    ["GGUF alone", { "x.gguf": "" }, "start from the checkpoint they were made of"],
    ["PyTorch files", { "config.json": {}, "pytorch_model.bin": "" }, "save_pretrained"],
    ["GGUF with a config", { "config.json": {}, "x.gguf": "" }, "only GGUF"],
    ["an adapter", { "config.json": {}, "adapter_model.safetensors": "" }, "merge it"],
    ["other names", { "config.json": {}, "weights.safetensors": "" }, "have other names"],
    ["no weights", { "config.json": {} }, "download the weights"],
    ["an empty weight file", { "config.json": {}, "model.safetensors": "" }, "has 0 bytes"],
  ])("is refused with advice: %s", (_what, files, part) => {
    const dir = folder(files);
    expectAqError(() => openCheckpoint(dir), "AQ_FILE", dir, part);
  });

  it("is refused when it is missing, or a file", () => {
    const dir = folder({ file: "" });
    expectAqError(() => openCheckpoint(path.join(dir, "x")), "AQ_FILE", "does not exist");
    expectAqError(() => openCheckpoint(path.join(dir, "file")), "AQ_FILE", "is a file");
  });

  it("is refused when config.json is no JSON object", () => {
    const weights = bytesSafetensors({ a: [1] });
    const open = (config: string) => () =>
      openCheckpoint(folder({ "config.json": config, "model.safetensors": weights }));
    expectAqError(open("{"), "AQ_FORMAT", "config.json", "not valid JSON");
    expectAqError(open("[1]"), "AQ_FORMAT", "config.json", "holds an array");
  });
});

describe("an index that does not fit", () => {
  const map = { a: "one.safetensors", b: "one.safetensors", c: "two.safetensors" };

  it.each<[string, unknown, string]>([
    ["no weight_map", undefined, 'an object "weight_map"'],
    ["an empty weight_map", {}, "is empty"],
    ["a number", { ...map, c: 2 }, "got number 2"],
    ["a path upwards", { ...map, c: "../two.safetensors" }, '"c" must name'],
    ["an absolute path", { ...map, c: "/etc/x.safetensors" }, '"c" must name'],
    ["a path on Windows", { ...map, c: "C:\\x.safetensors" }, '"c" must name'],
    ["a subfolder", { ...map, c: "sub/two.safetensors" }, '"c" must name'],
    ["another kind of file", { ...map, c: "config.json" }, '"c" must name'],
    ["a missing tensor", { ...map, d: "two.safetensors" }, 'places "d" in two.safetensors'],
    ["a tensor in another shard", { ...map, a: "two.safetensors" }, 'places "a"'],
    ["an unlisted tensor", { a: map.a, c: map.c }, 'has "b", but'],
  ])("is refused: %s", (_what, weightMap, part) => {
    expectAqError(() => openCheckpoint(sharded(weightMap as object)), "AQ_FORMAT", part);
  });

  it("is refused when a shard is missing", () => {
    const dir = sharded({ ...map, d: "three.safetensors" });
    expectAqError(() => openCheckpoint(dir), "AQ_FILE", "three.safetensors", "does not exist");
  });
});

describe("symbolic links", () => {
  const weights = bytesSafetensors({ a: [1] });

  it("are refused when they leave the folder", () => {
    const outside = path.join(folder({ "secret.safetensors": weights }), "secret.safetensors");
    const dir = folder({ "config.json": {} });
    fs.symlinkSync(outside, path.join(dir, "model.safetensors"));
    expectAqError(() => openCheckpoint(dir), "AQ_FILE", "is a link to", "outside");
  });

  it("are followed inside the folder, and in the hub's download cache", () => {
    const repo = folder({});
    const dir = path.join(repo, "snapshots", "abc");
    fs.mkdirSync(dir, { recursive: true });
    fs.mkdirSync(path.join(repo, "blobs"));
    writeFiles(path.join(repo, "blobs"), { "1": {}, "2": weights });
    fs.symlinkSync("../../blobs/1", path.join(dir, "config.json"));
    fs.symlinkSync("../../blobs/2", path.join(dir, "real"));
    fs.symlinkSync("real", path.join(dir, "model.safetensors"));
    const checkpoint = openCheckpoint(dir);
    expect([...checkpoint.readBytes("a")]).toEqual([1]);
    checkpoint.close();
  });
});
