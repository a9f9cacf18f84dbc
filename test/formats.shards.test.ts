// Several safetensors files: cut by size, each tensor where its type wants it, an index over all.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeShards } from "../lib/formats/shards.ts";
import { readJson } from "./helpers/small-run.ts";
import { readTensors, tensorNamed } from "./helpers/tensor-file.ts";

let temp = "";

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

describe("files of limited size", () => {
  it("are as many as it takes, with an index that names each tensor's", async () => {
    const dir = path.join(temp, "shards");
    fs.mkdirSync(dir);
    const tensors = Array.from({ length: 7 }, (_, i) => ({
      name: `t${i}`,
      dtype: i % 2 === 0 ? ("U8" as const) : ("F16" as const),
      shape: i % 2 === 0 ? [3] : [4],
      pieces: () => [new Uint8Array(i % 2 === 0 ? 3 : 8).fill(i)],
    }));
    await writeShards(dir, tensors, async () => {}, 20);
    const index = readJson(dir, "model.safetensors.index.json");
    expect(index["metadata"]).toEqual({ total_size: 4 * 3 + 3 * 8 });
    const map = index["weight_map"] as Record<string, string>;
    expect([...new Set(Object.values(map))]).toEqual([
      "model-00001-of-00003.safetensors",
      "model-00002-of-00003.safetensors",
      "model-00003-of-00003.safetensors",
    ]);
    for (const [name, file] of Object.entries(map)) {
      const { bytes } = tensorNamed(readTensors(path.join(dir, file)), name);
      expect(new Set(bytes)).toEqual(new Set([Number(name.slice(1))]));
    }
    // What would shift the others lies behind them.
    expect([...readTensors(path.join(dir, "model-00001-of-00003.safetensors")).keys()]).toEqual([
      "t1",
      "t0",
      "t2",
    ]);
  });
});
