// GGUF files of the families that are built like LLaMA.
import { describe, expect, it } from "vitest";
import { EVERY, expectNumbers, ggufName, ggufWriter, scalesOf, weightsOf } from "./helpers/gguf.ts";
import { exactWeights } from "./helpers/synthetic-run.ts";

const written = ggufWriter();

describe("a file", () => {
  it.each([
    ["mistral", "llama", 0],
    ["qwen2", "qwen2", 3],
    ["qwen3", "qwen3", 2],
  ] as const)(
    "is of %s as the architecture %s, in whose order its rows are",
    async (family, own, more) => {
      const file = await written({ ...EVERY, family, bits: 4, symmetric: true });
      const { metadata, run, tensors } = file;
      expect(metadata).toMatchObject({
        "general.architecture": own,
        [`${own}.block_count`]: 2,
        [`${own}.attention.head_count_kv`]: 2,
        [`${own}.attention.key_length`]: 16,
        [`${own}.attention.value_length`]: 16,
        [`${own}.rope.freq_base`]: 10000,
        [`${own}.context_length`]: 64,
      });
      const strange = Object.keys(metadata).filter((key) => /^(llama|qwen\d)\./.test(key));
      expect(strange.filter((key) => !key.startsWith(`${own}.`))).toEqual([]);
      for (const linear of run.linears) {
        const got = weightsOf(file, linear, "Q4_0", 16, own === "llama");
        expectNumbers(got, exactWeights(linear, scalesOf(linear)));
      }
      for (const name of [...run.plain.keys()].filter((key) => /self_attn/.test(key))) {
        const numbers = run.plain.get(name) as Float32Array;
        const data = file.bytes(ggufName(name));
        expect(
          Array.from(numbers, (_, i) => data.readFloatLE(4 * i)),
          name,
        ).toEqual([...numbers]);
      }
      expect(tensors.size).toBe(run.linears.length + 2 * (2 + more) + 3);
    },
  );

  it("is how far attention sees, where a window bounds it, and a note says so", async () => {
    const windowed = { family: "mistral", config: { sliding_window: 48 } } as const;
    const file = await written({ ...EVERY, ...windowed, bits: 4, symmetric: true });
    expect(file.metadata).toMatchObject({ "llama.context_length": 48 });
    expect(file.result.notes.join()).toContain("window of 48 tokens");
  });
});
