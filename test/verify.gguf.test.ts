// Parts of the GGUF check by themselves: blocks, the order of rows, factors of rotary frequencies.
import { describe, expect, it } from "vitest";
import type { Model } from "../lib/models/family.ts";
import { readLlamaConfig } from "../lib/models/llama.ts";
import { inverseFrequencies } from "../lib/models/rope.ts";
import { takeApart } from "../lib/verify/gguf/blocks.ts";
import { ropeFactors } from "../lib/verify/gguf/metadata.ts";
import { rowOrder } from "../lib/verify/gguf/names.ts";
import { tinyFixture } from "./helpers/fixture.ts";
import { readJson } from "./helpers/small-run.ts";

describe("blocks", () => {
  /** Bytes j | (15 - j) << 4: values 0 to 15, then 15 to 0. */
  const nibbles = Array.from({ length: 16 }, (_, j) => j | ((15 - j) << 4));
  const values = [...Array(16).keys(), ...[...Array(16).keys()].reverse()];

  it("of Q4_0 hold a step and two halves", () => {
    const { codes, d, m } = takeApart(Uint8Array.from([0x34, 0x12, ...nibbles]), "Q4_0");
    expect([...codes]).toEqual(values);
    expect([[...d], m]).toEqual([[0x1234], null]);
  });

  it("of Q4_1 hold an offset as well", () => {
    const block = [0x34, 0x12, 0x78, 0x56, ...nibbles];
    const { codes, d, m } = takeApart(Uint8Array.from([...block, ...block]), "Q4_1");
    expect([...codes]).toEqual([...values, ...values]);
    expect([[...d], [...(m ?? [])]]).toEqual([
      [0x1234, 0x1234],
      [0x5678, 0x5678],
    ]);
  });

  it("of Q8_0 hold signed bytes", () => {
    const bytes = Array.from({ length: 32 }, (_, j) => 112 + j);
    const { codes, d } = takeApart(Uint8Array.from([0, 0x3c, ...bytes]), "Q8_0");
    expect([...codes]).toEqual(bytes.map((x) => (x < 128 ? x : x - 256)));
    expect([...d]).toEqual([0x3c00]);
  });
});

describe("rows", () => {
  it("of q and k are those of [h, 2, d / 2] with the last two exchanged", () => {
    const [heads, headDim] = [3, 8];
    const model = { family: "mistral", shape: { headDim } } as Model;
    const expected: number[] = [];
    for (let h = 0; h < heads; h++) {
      for (let j = 0; j < headDim / 2; j++) {
        for (let t = 0; t < 2; t++) expected.push((h * 2 + t) * (headDim / 2) + j);
      }
    }
    const rows = [...Array(heads * headDim).keys()];
    expect(rows.map(rowOrder(model, "q"))).toEqual(expected);
    expect(rows.map(rowOrder(model, "k.bias"))).toEqual(expected);
    expect(rows.map(rowOrder(model, "v"))).toEqual(rows);
    // What llama.cpp knows under a name of its own it turns as checkpoints have it.
    for (const family of ["qwen2", "qwen3"]) {
      expect(rows.map(rowOrder({ ...model, family }, "q"))).toEqual(rows);
    }
  });
});

describe("factors of rotary frequencies", () => {
  it("are by how much LLaMA 3's rule slows each", () => {
    const json = readJson(tinyFixture("rope-llama3"), "config.json");
    const config = readLlamaConfig(json);
    const plain = inverseFrequencies(
      { ...config, ropeScaling: { type: "default" } },
      config.headDim,
    );
    const slowed = inverseFrequencies(config, config.headDim);
    const factors = ropeFactors(json, config.headDim) ?? [];
    expect(factors).toHaveLength(config.headDim / 2);
    expect(factors.some((x) => x > 1)).toBe(true);
    for (const [i, factor] of factors.entries()) {
      const expected = (plain[i] as number) / (slowed[i] as number);
      expect(Math.abs(factor / expected - 1)).toBeLessThan(1e-5);
    }
    const old = readJson(tinyFixture("rope-llama3"), "config.old.json");
    expect(ropeFactors(old, config.headDim)).toEqual(factors);
    expect(ropeFactors(readJson(tinyFixture("gqa"), "config.json"), 8)).toBeNull();
  });
});
