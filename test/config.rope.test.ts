import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { readSafetensorsHeader } from "../lib/checkpoint/safetensors.ts";
import { readLlamaConfig } from "../lib/models/llama.ts";
import { inverseFrequencies, ropeTables } from "../lib/models/rope.ts";
import { openForReading, readFully } from "../lib/util/fs.ts";
import { readJsonFile } from "../lib/util/json.ts";

const tiny = path.join(import.meta.dirname, "fixtures/tiny");

/** A float32 tensor that transformers computed. */
function golden(name: string, tensor: string): Float32Array {
  const file = path.join(tiny, name, "golden.safetensors");
  const fd = openForReading(file);
  try {
    const entry = readSafetensorsHeader(fd, file).tensors.get(tensor);
    const values = new Float32Array((entry?.bytes ?? 0) / 4);
    readFully(fd, new Uint8Array(values.buffer), entry?.offset ?? 0, file);
    return values;
  } finally {
    fs.closeSync(fd);
  }
}

describe("rotary embedding", () => {
  it.each(fs.readdirSync(tiny))("has the frequencies and angles of transformers for %s", (name) => {
    const config = readLlamaConfig(readJsonFile(path.join(tiny, name, "config.json")));
    // Bit by bit: an error here would grow with the position.
    expect(inverseFrequencies(config, config.headDim)).toEqual(golden(name, "rope.inv_freq"));
    const tables = ropeTables(config, 40);
    for (const [values, tensor] of [
      [tables.cos, "rope.cos"],
      [tables.sin, "rope.sin"],
    ] as const) {
      const expected = golden(name, tensor);
      expect(values).toHaveLength(expected.length);
      // The other side's cosine is within one unit in the last place of ours.
      for (const [i, x] of values.entries()) {
        expect(Math.abs(x - (expected[i] as number))).toBeLessThanOrEqual(2 ** -24);
      }
    }
  });

  it("slows only the slow pairs under llama3, smoothly between", () => {
    const headDim = 128;
    const settings = { ropeTheta: 500000, ropeScaling: { type: "default" } } as const;
    const plain = inverseFrequencies(settings, headDim);
    const stretched = inverseFrequencies(
      {
        ropeTheta: 500000,
        ropeScaling: {
          type: "llama3",
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxTokens: 8192,
        },
      },
      headDim,
    );
    const ratios = Array.from(plain, (x, i) => x / (stretched[i] as number));
    expect(ratios[0]).toBe(1);
    expect(ratios.at(-1)).toBeCloseTo(8, 5);
    expect(ratios.some((r) => r > 1.1 && r < 7)).toBe(true);
    for (let i = 1; i < ratios.length; i++) {
      expect(ratios[i]).toBeGreaterThanOrEqual((ratios[i - 1] as number) - 1e-6);
    }
  });
});
