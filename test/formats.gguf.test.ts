// GGUF files: opened by the hub's own parser, their blocks taken apart by hand.
import { describe, expect, it } from "vitest";
import { EVERY, expectNumbers, ggufName, ggufWriter, scalesOf, weightsOf } from "./helpers/gguf.ts";
import { F16, roundHalf } from "./helpers/half.ts";
import { exactWeights, VOCABULARY } from "./helpers/synthetic-run.ts";

const written = ggufWriter();

describe("the types of grids", () => {
  it.each<[number, boolean, "Q4_0" | "Q8_0", number]>([
    [2, true, "Q4_0", 32],
    [3, true, "Q4_0", 0],
    [4, true, "Q4_0", 32],
    [2, false, "Q4_0", 0],
    [3, false, "Q4_0", 32],
    [5, false, "Q8_0", 32],
    [7, false, "Q8_0", 0],
    [8, true, "Q8_0", 32],
  ])(
    "%i bits (symmetric: %s) are %s without any change",
    async (bits, symmetric, type, groupSize) => {
      const file = await written({ ...EVERY, bits, symmetric, groupSize });
      expect(file.result.change).toEqual({ max: 0, rms: 0 });
      for (const linear of file.run.linears) {
        expectNumbers(weightsOf(file, linear, type, 16), exactWeights(linear, scalesOf(linear)));
      }
      expect(file.metadata["general.file_type"]).toBe({ Q4_0: 2, Q8_0: 7 }[type]);
    },
  );

  it.each([
    [0, false],
    [32, false],
    [32, true],
  ])(
    "4 bits with zero points are Q4_1, whose minimum is rounded (group %i, published: %s)",
    async (groupSize, published) => {
      const file = await written({ ...EVERY, bits: 4, symmetric: false, groupSize, published });
      let [largest, difference, size] = [0, 0, 0];
      for (const linear of file.run.linears) {
        const { columns, group, groups, codes, zeros } = linear;
        const scales = scalesOf(linear);
        const exact = exactWeights(linear, scales);
        const expected = exact.map((_, at) => {
          const g = Math.floor(at / columns) * groups + Math.floor((at % columns) / group);
          const scale = scales[g] as number;
          const minimum = roundHalf(-(zeros[g] as number) * scale, F16);
          return (codes[at] as number) * scale + minimum;
        });
        expectNumbers(weightsOf(file, linear, "Q4_1", 16), expected);
        let [most, top] = [0, 0];
        for (const [i, w] of exact.entries()) {
          const off = Math.abs((expected[i] as number) - w);
          most = Math.max(most, off);
          top = Math.max(top, Math.abs(w));
          difference += off ** 2;
          size += w ** 2;
        }
        largest = Math.max(largest, most / top);
      }
      // What was said of the change is what a reader finds.
      expect(file.result.change.max).toBeCloseTo(largest, 8);
      expect(file.result.change.rms).toBeCloseTo(Math.sqrt(difference / size), 8);
      expect(largest).toBeLessThan(1e-3);
      expect(file.metadata["general.file_type"]).toBe(3);
    },
  );

  it("rows that are no multiple of 32 are F16, and it says so", async () => {
    const file = await written({ ...EVERY, mlp: 48, bits: 4, symmetric: true, groupSize: 0 });
    for (const linear of file.run.linears) {
      const isRagged = linear.name.includes("down_proj");
      const exact = exactWeights(linear, scalesOf(linear));
      const expected = isRagged ? exact.map((w) => roundHalf(w, F16) + 0) : exact;
      expectNumbers(weightsOf(file, linear, isRagged ? "F16" : "Q4_0", 16), expected);
    }
    expect(file.result.notes.join()).toContain("down (48)");
  });

  it("gguf-f16 holds the dequantized weights of any grid", async () => {
    const settings = { ...EVERY, bits: 8, symmetric: false, groupSize: 24 };
    const file = await written(settings, "gguf-f16");
    for (const linear of file.run.linears) {
      const exact = exactWeights(linear, scalesOf(linear));
      expectNumbers(
        weightsOf(file, linear, "F16", 16),
        exact.map((w) => roundHalf(w, F16) + 0),
      );
    }
    expect(file.metadata).toMatchObject({ "general.file_type": 1 });
    expect(file.metadata).not.toHaveProperty("general.quantization_version");
  });
});

describe("what the file says", () => {
  it("is the model: its sizes, positions and tensors", async () => {
    const { metadata, tensors, run } = await written({ ...EVERY, bits: 4, symmetric: false });
    expect(metadata).toMatchObject({
      version: 3,
      "general.architecture": "llama",
      "general.name": "synthetic",
      "general.quantization_version": 2,
      "llama.context_length": 64,
      "llama.embedding_length": 64,
      "llama.block_count": 2,
      "llama.feed_forward_length": 96,
      "llama.attention.head_count": 4,
      "llama.attention.head_count_kv": 2,
      "llama.attention.key_length": 16,
      "llama.rope.dimension_count": 16,
      "llama.rope.freq_base": 10000,
      "llama.vocab_size": VOCABULARY,
      "aq.bits": 4,
      "aq.group_size": 32,
      "aq.symmetric": false,
    });
    expect(metadata["llama.attention.layer_norm_rms_epsilon"]).toBeCloseTo(1e-5, 10);
    // Two norms a block, and embedding, norm and head.
    expect(tensors.size).toBe(run.linears.length + 4 + 3);
    expect(tensors.get("blk.1.ffn_norm.weight")).toMatchObject({ dtype: 0, shape: [64] });
    expect(tensors.get("output.weight")).toMatchObject({ dtype: 1, shape: [64, VOCABULARY] });
    expect([...tensors.values()].every(({ offset }) => offset % 32 === 0)).toBe(true);
  });

  it("permutes biases of q and k like their rows, and leaves a tied head out", async () => {
    const settings = { ...EVERY, bits: 4, symmetric: true, attentionBias: true, tied: true };
    const { bytes, run, tensors } = await written(settings);
    for (const linear of ["q", "k", "v"]) {
      const name = `model.layers.1.self_attn.${linear}_proj.bias`;
      const bias = run.plain.get(name) as Float32Array;
      const data = bytes(ggufName(name));
      const got = Array.from(bias, (_, row) => data.readFloatLE(4 * row));
      const within = (row: number): number => row % 16;
      const expected = Array.from(bias, (_, row) =>
        linear === "v"
          ? bias[row]
          : bias[row - within(row) + (within(row) % 2) * 8 + (within(row) >> 1)],
      );
      expect(got, linear).toEqual(expected);
    }
    expect(tensors.has("output.weight")).toBe(false);
  });

  it("is the tokenizer, filled up to the rows of the embedding", async () => {
    const { metadata } = await written({ ...EVERY, bits: 4, symmetric: true });
    expect(metadata).toMatchObject({
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "gpt-2",
      "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "<note>", "[PAD6]"],
      "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 4, 5],
      "tokenizer.ggml.merges": ["a b"],
      "tokenizer.ggml.bos_token_id": 0,
      "tokenizer.ggml.eos_token_id": 1,
      "tokenizer.ggml.add_bos_token": false,
      "tokenizer.ggml.add_space_prefix": false,
    });
    expect(metadata).not.toHaveProperty("tokenizer.ggml.padding_token_id");
  });

  it("has rotary scaling as keys, or as a tensor of factors", async () => {
    const linear = { rope_scaling: { type: "linear", factor: 4 } };
    const settings = { ...EVERY, bits: 4, symmetric: true };
    expect((await written({ ...settings, config: linear })).metadata).toMatchObject({
      "llama.rope.scaling.type": "linear",
      "llama.rope.scaling.factor": 4,
    });
    const llama3 = {
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 32,
      },
    };
    const { bytes, tensors } = await written({ ...settings, config: llama3 });
    expect(tensors.get("rope_freqs.weight")).toMatchObject({ dtype: 0, shape: [8] });
    const factors = Array.from({ length: 8 }, (_, i) =>
      bytes("rope_freqs.weight").readFloatLE(4 * i),
    );
    expect(factors[0]).toBeCloseTo(1, 6);
    expect(factors[7]).toBeCloseTo(8, 5);
    expect([...factors].sort((a, b) => a - b)).toEqual(factors);
  });
});
