// What the configurations of LLaMA's kin say, what they stand for where a key is absent, and what is
// refused because it would change the computation.
import { describe, expect, it } from "vitest";
import { readLlamaConfig } from "../lib/models/llama.ts";
import { readMistralConfig } from "../lib/models/mistral.ts";
import { readQwen2Config } from "../lib/models/qwen2.ts";
import { readQwen3Config } from "../lib/models/qwen3.ts";
import { openModel } from "../lib/models/registry.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { tinyFixture } from "./helpers/fixture.ts";
import { readJson } from "./helpers/small-run.ts";

const base = {
  hidden_size: 64,
  intermediate_size: 160,
  num_attention_heads: 32,
  num_hidden_layers: 4,
  vocab_size: 100,
};
const READERS = {
  llama: readLlamaConfig,
  mistral: readMistralConfig,
  qwen2: readQwen2Config,
  qwen3: readQwen3Config,
} as const;
type Name = keyof typeof READERS;

/** The longest sequence of a model of such a configuration. */
function longest(model_type: Name, more: object): number {
  return openModel({ ...base, model_type, ...more }, () => true).shape.maxTokens;
}

describe("reading a configuration of LLaMA's kin", () => {
  it.each<[Name, object]>([
    ["mistral", { kvHeads: 8, headDim: 2, maxTokens: 131072, slidingWindow: 4096 }],
    ["qwen2", { kvHeads: 32, headDim: 2, maxTokens: 32768, slidingWindow: null }],
    ["qwen3", { kvHeads: 32, headDim: 128, maxTokens: 32768, slidingWindow: null }],
  ])("fills in what transformers fills in: %s", (name, expected) => {
    const always = { rmsEps: 1e-6, ropeTheta: 10000, tiedHead: false, dtype: null };
    expect(READERS[name](base)).toMatchObject({ ...always, ...expected });
    // Where the key is there and null, there are as many as query heads.
    const read = READERS[name]({ ...base, num_key_value_heads: null });
    expect(read.kvHeads).toBe(32);
  });

  it.each<[Name, object, number]>([
    ["mistral", { sliding_window: null, max_position_embeddings: 32768 }, 32768],
    ["mistral", { sliding_window: 4096, max_position_embeddings: 32768 }, 4096],
    ["mistral", { sliding_window: 4096, max_position_embeddings: 2048 }, 2048],
    ["mistral", { max_position_embeddings: 32768 }, 4096],
    ["qwen2", { sliding_window: 16 }, 32768],
    ["qwen2", { use_sliding_window: false, sliding_window: 16, max_window_layers: 0 }, 32768],
    ["qwen2", { use_sliding_window: true, sliding_window: 16, max_window_layers: 3 }, 16],
    ["qwen2", { use_sliding_window: true, sliding_window: 16, max_window_layers: 4 }, 32768],
    ["qwen2", { use_sliding_window: true, sliding_window: 16 }, 32768],
    ["qwen2", { use_sliding_window: true, sliding_window: null, max_window_layers: 0 }, 32768],
    ["qwen3", { use_sliding_window: true, max_window_layers: 0 }, 4096],
    [
      "qwen3",
      {
        use_sliding_window: true,
        max_window_layers: 0,
        layer_types: Array(4).fill("full_attention"),
      },
      32768,
    ],
    [
      "qwen3",
      {
        use_sliding_window: true,
        sliding_window: 99,
        layer_types: ["full_attention", "sliding_attention", "full_attention", "full_attention"],
      },
      99,
    ],
    ["qwen3", { layer_types: Array(4).fill("full_attention") }, 32768],
  ])("bounds sequences by the window that a layer has: %s %o", (name, more, expected) => {
    expect(longest(name, more)).toBe(expected);
  });

  it.each<[Name, object, string[]]>([
    ["mistral", { hidden_act: "gelu" }, ['"hidden_act"', '"gelu"', '"silu"']],
    ["qwen2", { hidden_act: "gelu" }, ['"hidden_act"', '"gelu"']],
    ["mistral", { attention_bias: true }, ['"attention_bias" is true', "mistral"]],
    ["mistral", { mlp_bias: true }, ['"mlp_bias" is true', "mistral"]],
    ["qwen2", { mlp_bias: true }, ['"mlp_bias" is true', "qwen2"]],
    ["qwen3", { mlp_bias: true }, ['"mlp_bias" is true', "qwen3"]],
    ["qwen3", { attention_bias: 1 }, ['"attention_bias"', "true or false"]],
    ["mistral", { sliding_window: 0 }, ['"sliding_window"', "number 0"]],
    ["mistral", { sliding_window: "4096" }, ['"sliding_window"', '"4096"']],
    ["qwen2", { use_sliding_window: 1 }, ['"use_sliding_window"', "true or false"]],
    ["qwen2", { use_sliding_window: true, max_window_layers: -1 }, ['"max_window_layers"']],
    ["qwen2", { layer_types: ["full_attention"] }, ['"layer_types"', "4 times", "an array"]],
    ["qwen2", { layer_types: Array(4).fill("linear_attention") }, ['"linear_attention"']],
    [
      "qwen3",
      { layer_types: Array(4).fill("sliding_attention") },
      ['"use_sliding_window" must be true'],
    ],
    ["qwen2", { rope_scaling: { type: "yarn", factor: 4 } }, ['"yarn"', "llama3"]],
    ["qwen3", { rope_parameters: { rope_type: "dynamic", factor: 2 } }, ['"dynamic"']],
    ["mistral", { rope_scaling: { type: "longrope", short_factor: [1] } }, ["not supported"]],
    ["qwen2", { rope_scaling: { type: "mrope", mrope_section: [1] } }, ["not supported"]],
    ["mistral", { num_attention_heads: 4 }, ['no "num_key_value_heads"', "8", "add the key"]],
    ["qwen3", { head_dim: 15 }, ["15 features"]],
  ])("refuses %s with %o", (name, more, parts) => {
    expectAqError(() => READERS[name]({ ...base, ...more }), "AQ_MODEL", ...parts);
  });

  it.each(["qwen2_moe", "qwen3_moe", "mixtral", "qwen2_vl", "ministral"])(
    "refuses the family %s with those that there are",
    (model_type) => {
      const open = (): unknown => openModel({ ...base, model_type }, () => true);
      const known = "llama, mistral, qwen2, qwen3, opt";
      expectAqError(open, "AQ_MODEL", `"${model_type}"`, known);
    },
  );

  it.each<[string, Name, readonly string[]]>([
    ["mistral", "mistral", []],
    ["qwen2", "qwen2", ["q.bias", "k.bias", "v.bias"]],
    ["qwen3", "qwen3", ["q_norm", "k_norm"]],
    ["qwen3-biases", "qwen3", ["q.bias", "k.bias", "v.bias", "o.bias", "q_norm", "k_norm"]],
  ])("names the tensors that a block has beside LLaMA's: %s", (fixture, name, expected) => {
    const model = openModel(readJson(tinyFixture(fixture), "config.json"), () => true);
    const linears = new Set(model.linears.map(({ key }) => key));
    const others = model
      .blockTensors(0)
      .map(({ key }) => key)
      .filter((key) => !linears.has(key));
    expect(model.family).toBe(name);
    expect(others).toEqual(["norm1", "norm2", ...expected]);
  });
});
