import * as path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { AqError } from "../lib/errors.ts";
import { readLlamaConfig } from "../lib/models/llama.ts";
import { readJsonFile } from "../lib/util/json.ts";
import { expectAqError } from "./helpers/expect-error.ts";

const fixtures = path.join(import.meta.dirname, "fixtures");

const base = {
  hidden_size: 64,
  intermediate_size: 160,
  num_attention_heads: 4,
  num_hidden_layers: 2,
  vocab_size: 100,
};

const llama3 = {
  rope_type: "llama3",
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};

describe("reading a LLaMA config", () => {
  it("reads what the fixture says", () => {
    expect(readLlamaConfig(readJsonFile(path.join(fixtures, "llama-gqa-4m/config.json")))).toEqual({
      hidden: 256,
      layers: 4,
      heads: 8,
      kvHeads: 4,
      headDim: 32,
      mlp: 704,
      vocab: 4096,
      maxTokens: 512,
      rmsEps: 1e-5,
      ropeTheta: 10000,
      ropeScaling: { type: "default" },
      attentionBias: false,
      mlpBias: false,
      tiedHead: true,
      dtype: "f16",
    });
  });

  it("fills in what transformers fills in", () => {
    expect(readLlamaConfig({ ...base, num_key_value_heads: null, head_dim: null })).toMatchObject({
      kvHeads: 4,
      headDim: 16,
      maxTokens: 2048,
      rmsEps: 1e-6,
      ropeTheta: 10000,
      tiedHead: false,
      dtype: null,
    });
  });

  it.each(["rope-linear", "rope-llama3"])("reads both spellings of %s alike", (name) => {
    const [now, before] = ["config.json", "config.old.json"].map((file) =>
      readLlamaConfig(readJsonFile(path.join(fixtures, "tiny", name, file))),
    );
    expect(before).toEqual(now);
    expect(`rope-${now?.ropeScaling.type}`).toBe(name);
  });

  it("takes theta from wherever it is, and llama3's numbers as they are", () => {
    const read = (more: object) => readLlamaConfig({ ...base, ...more });
    expect(read({ rope_theta: 5e5 }).ropeTheta).toBe(5e5);
    expect(read({ rope_parameters: { rope_theta: 3e5 } }).ropeTheta).toBe(3e5);
    expect(read({ rope_scaling: null, rope_theta: 1e6 }).ropeTheta).toBe(1e6);
    expect(read({ rope_scaling: llama3 }).ropeScaling).toEqual({
      type: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxTokens: 8192,
    });
    const same = { rope_parameters: { ...llama3, rope_theta: 5e5 }, rope_theta: 5e5 };
    expect(read({ ...same, rope_scaling: llama3 })).toEqual(read(same));
  });

  it.each<[string, object, string[]]>([
    ["hidden_act", { hidden_act: "gelu" }, ['"hidden_act"', '"gelu"', '"silu"']],
    ["a missing size", { hidden_size: undefined }, ['"hidden_size"', "got nothing"]],
    ["a size as text", { vocab_size: "100" }, ['"vocab_size"', 'got "100"']],
    ["no heads", { num_attention_heads: 0 }, ['"num_attention_heads"', "number 0"]],
    ["half a layer", { num_hidden_layers: 1.5 }, ['"num_hidden_layers"', "whole"]],
    ["a number beyond 32 bits", { vocab_size: 2 ** 40 }, ['"vocab_size"']],
    [
      "too large a matrix",
      { hidden_size: 2 ** 30, head_dim: 16, intermediate_size: 2 ** 30 },
      ["too large"],
    ],
    ["heads that do not divide", { num_attention_heads: 5 }, ['"hidden_size"', "multiple"]],
    ["key heads that do not divide", { num_key_value_heads: 3 }, ["divisor", "(4)", "number 3"]],
    ["more key heads than heads", { num_key_value_heads: 8 }, ['"num_key_value_heads"']],
    ["odd heads", { head_dim: 15 }, ["15 features", "head_dim"]],
    ["odd heads by division", { num_attention_heads: 64 }, ["head_dim"]],
    ["a bias that is no boolean", { attention_bias: 1 }, ['"attention_bias"', "true or false"]],
    ["an unknown dtype", { torch_dtype: "int8" }, ['"torch_dtype"', "float16"]],
    ["dynamic rope", { rope_scaling: { type: "dynamic", factor: 2 } }, ['"dynamic"', "llama3"]],
    ["yarn", { rope_parameters: { rope_type: "yarn", factor: 2 } }, ['"yarn"']],
    ["longrope", { rope_scaling: { type: "longrope", short_factor: [1] } }, ["not supported"]],
    ["rope of layers", { rope_parameters: { full_attention: {} } }, ["between layers"]],
    ["partial rope", { rope_parameters: { partial_rotary_factor: 0.5 } }, ["part of each head"]],
    ["linear without a factor", { rope_scaling: { type: "linear" } }, ['"factor"', "nothing"]],
    ["a factor below 1", { rope_scaling: { type: "linear", factor: 0.5 } }, ['"factor"']],
    ["bands in the wrong order", { rope_scaling: { ...llama3, high_freq_factor: 1 } }, ["above"]],
    ["two thetas", { rope_parameters: { rope_theta: 1e4 }, rope_theta: 1e5 }, ["everywhere"]],
    [
      "two scalings",
      { rope_parameters: { rope_type: "default" }, rope_scaling: llama3 },
      ["keep one"],
    ],
    ["rope that is no object", { rope_scaling: "linear" }, ['"rope_scaling"', "an object"]],
  ])("refuses %s", (_what, more, parts) => {
    expectAqError(() => readLlamaConfig({ ...base, ...more }), "AQ_MODEL", ...parts);
  });

  it("never fails with anything but an AqError, and never gives sizes that contradict", () => {
    const keys = Object.keys({ ...base, head_dim: 0, num_key_value_heads: 0, rope_scaling: 0 });
    const value = fc.oneof(
      fc.integer({ min: -2, max: 70 }),
      fc.json().map((s) => JSON.parse(s)),
    );
    const change = fc.dictionary(fc.constantFrom(...keys), value, { maxKeys: 3 });
    fc.assert(
      fc.property(change, (more) => {
        try {
          const c = readLlamaConfig({ ...base, ...more });
          expect(c.heads % c.kvHeads).toBe(0);
          expect(c.headDim % 2).toBe(0);
        } catch (error) {
          expect(error).toBeInstanceOf(AqError);
        }
      }),
      { numRuns: 400 },
    );
  });

  it("agrees with the shapes of every fixture's tensors", () => {
    for (const name of ["biases", "gqa", "head-dim", "old-keys", "sharded", "untied"]) {
      const checkpoint = openCheckpoint(path.join(fixtures, "tiny", name));
      const c = readLlamaConfig(checkpoint.config);
      const at = "model.layers.1.";
      const shape = (tensor: string): readonly number[] => checkpoint.info(tensor).shape;
      expect(shape(`${at}self_attn.k_proj.weight`)).toEqual([c.kvHeads * c.headDim, c.hidden]);
      expect(shape(`${at}self_attn.o_proj.weight`)).toEqual([c.hidden, c.heads * c.headDim]);
      expect(shape(`${at}mlp.up_proj.weight`)).toEqual([c.mlp, c.hidden]);
      expect(checkpoint.has(`${at}self_attn.q_proj.bias`)).toBe(c.attentionBias);
      expect(checkpoint.has(`${at}mlp.down_proj.bias`)).toBe(c.mlpBias);
      expect(checkpoint.has("lm_head.weight")).toBe(!c.tiedHead);
      checkpoint.close();
    }
  });
});
