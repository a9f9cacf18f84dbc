// What a format cannot carry is refused before any work, with a sentence that says what to do; and a
// program gets the format that it loads, or the reason why there is none.
import { describe, expect, it } from "vitest";
import type { FormatName, TargetName } from "../lib/export-types.ts";
import { FORMAT_NAMES, formatOf } from "../lib/formats/registry.ts";
import type { Setting } from "../lib/formats/setting.ts";
import { formatFor, TARGET_NAMES } from "../lib/formats/targets.ts";
import { randomHadamard } from "../lib/models/hadamard-down.ts";
import { openModel } from "../lib/models/registry.ts";
import { float4Scheme, type QuantScheme } from "../lib/quant/scheme.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { OPT, TRAINED } from "./helpers/fixture.ts";
import { readJson } from "./helpers/small-run.ts";

interface Wish extends Partial<QuantScheme> {
  readonly folder?: string;
  readonly config?: object;
  readonly added?: readonly string[];
  readonly hadamard?: boolean;
  readonly tokenClips?: boolean;
  /** Keys of linears that are not quantized in any block. */
  readonly kept?: readonly string[];
  /** The same of the first block. */
  readonly keptFirst?: readonly string[];
}

function setting({ folder = TRAINED, config = {}, added = [], ...wish }: Wish): Setting {
  const json = { ...readJson(folder, "config.json"), ...config };
  const plain = openModel(json, () => true);
  const hadamardDown = wish.hadamard ? randomHadamard(plain.shape.mlp, 1) : undefined;
  const { wbits = 4, abits = 16, groupSize = 64, symmetric = false, grids, numbers } = wish;
  const { kept = [], keptFirst = [] } = wish;
  const own = { wbits, abits, groupSize, symmetric, ...(grids ? { grids } : {}) };
  const isQuantized = kept.length === 0 && keptFirst.length === 0;
  return {
    model: openModel(json, () => true, { added, hadamardDown }),
    folder,
    config: json,
    scheme: numbers ? float4Scheme(numbers, abits === 16 ? 16 : 4) : own,
    kept: isQuantized
      ? []
      : Array.from({ length: plain.shape.blocks }, (_, i) => [...kept, ...(i ? [] : keptFirst)]),
    added,
    tokenClips: wish.tokenClips ?? false,
  };
}

const QWEN2 = { model_type: "qwen2" } as const;
const QWEN3 = { model_type: "qwen3", head_dim: 32 } as const;
const LLAMA3 = {
  rope_type: "llama3",
  rope_theta: 10000,
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 256,
} as const;

describe("a format refuses", () => {
  it.each<[FormatName, Wish, string]>([
    ["gptq", {}, "write gptq_v2, or quantize with --symmetric"],
    ["gptq", { symmetric: true, grids: "published" }, "write gptq_v2"],
    ["gptq", { symmetric: true, wbits: 6 }, "2, 3, 4, 8 bits, and this run has 6"],
    ["gptq_v2", { wbits: 5 }, "quantize with --wbits 4"],
    ["gptq_v2", { wbits: 3, config: { intermediate_size: 84 } }, "fills words of 32 bits, and"],
    ["awq", { wbits: 3 }, "4-bit weights, and this run has 3"],
    ["awq", { groupSize: 96 }, "q has rows of 256 in groups of 96"],
    ["awq", { config: { intermediate_size: 700 }, groupSize: 4 }, "eight rows at a time, and gate"],
    ["awq", { abits: 4 }, "4-bit activations would be left out"],
    ["awq", { hadamard: true }, "quantize with --hadamard none, or write aq"],
    ["awq", { added: ["norm1.residue"] }, "--norm-full"],
    ["awq", { added: ["norm1.beta", "q.bias"] }, "norm1.beta"],
    ["gguf", { folder: OPT }, "LLaMA and kin, since llama.cpp has no OPT"],
    [
      "gguf",
      { config: { ...QWEN2, rope_parameters: LLAMA3 } },
      "llama3's rotary scaling in a model of qw",
    ],
    ["gguf", { config: { ...QWEN2, head_dim: 64 } }, "features in qwen2, and it has 64"],
    ["gguf", { config: { ...QWEN3, attention_bias: true } }, "self_attn.o_proj.bias"],
    ["gguf", { groupSize: 48 }, "groups of 48 do not fill"],
    ["gguf", { wbits: 8 }, "asymmetric grids of 8 bits"],
    ["gguf", { abits: 4 }, "4-bit activations"],
    ["gguf", { hadamard: true }, "Hadamard"],
    ["gguf", { config: { vocab_size: 100 } }, "the embedding has 100 rows"],
    ["gguf-f16", { folder: OPT }, "no OPT"],
    ["compressed-tensors", { groupSize: 96 }, "needs rows that groups divide"],
    ["compressed-tensors", { abits: 8, wbits: 8 }, "symmetric about zero alone"],
    ["compressed-tensors", { abits: 6, symmetric: true }, "this run is W4A6"],
    ["compressed-tensors", { abits: 8, wbits: 8, symmetric: true }, "leave --group-size out"],
    [
      "compressed-tensors",
      { abits: 4, symmetric: true, tokenClips: true },
      "learned clipping of 4-bit activations",
    ],
    ["compressed-tensors", { added: ["norm1.residue", "norm1.beta"] }, "linears with biases"],
    ["compressed-tensors", { added: ["norm1.residue"], folder: OPT }, "linears with biases"],
    ["gptq", { numbers: "nvfp4" }, "whole numbers alone, and this run is NVFP4A16; write"],
    ["gptq_v2", { numbers: "mxfp4", abits: 4 }, "this run is MXFP4; write compressed-tensors, hf"],
    [
      "awq",
      { numbers: "nvfp4", abits: 4 },
      "this run is NVFP4; write compressed-tensors, modelopt",
    ],
    ["gguf", { numbers: "mxfp4" }, "this run is MXFP4A16"],
    ["modelopt", {}, "quantize with --scheme NVFP4 or NVFP4A16, or write compressed-tensors"],
    ["modelopt", { numbers: "mxfp4" }, "NVFP4 alone, and this run is MXFP4A16"],
    ["modelopt", { numbers: "nvfp4", hadamard: true }, "--hadamard none"],
    ["compressed-tensors", { numbers: "nvfp4", added: ["norm1.residue"] }, "--norm-full"],
    ["awq", { config: { intermediate_size: 700 }, groupSize: 4, kept: ["up"] }, "and gate has"],
  ])("%s: %j", (name, wish, part) => {
    const reason = formatOf(name).refuses(setting(wish));
    expect(reason).toContain(part);
    // One sentence, which says what to do.
    expect(reason).toMatch(/^[^\n]+[^.\n]$/);
    expect(reason).toMatch(/write |quantize |use |leave |copy |nearest|belong together/);
  });

  it("nothing that it can carry", () => {
    for (const name of FORMAT_NAMES) {
      const symmetric = name === "gptq";
      const wish = name === "modelopt" ? { numbers: "nvfp4" as const } : { symmetric };
      expect(formatOf(name).refuses(setting(wish)), name).toBeUndefined();
    }
    const fits: [FormatName, Wish][] = [
      ["awq", { folder: OPT }],
      ["awq", { symmetric: true, grids: "published", groupSize: 0 }],
      ["gptq_v2", { groupSize: 96 }],
      ["gguf", { grids: "published" }],
      ["gguf", { wbits: 8, abits: 8, symmetric: true, groupSize: 0 }],
      ["compressed-tensors", { wbits: 7, groupSize: 0 }],
      [
        "compressed-tensors",
        { abits: 8, wbits: 8, symmetric: true, groupSize: 0, tokenClips: true },
      ],
      ["compressed-tensors", { abits: 4, symmetric: true }],
      ["compressed-tensors", { added: ["norm1.residue", "norm2.residue"] }],
      ["aq", { abits: 4, tokenClips: true, hadamard: true, added: ["norm1.residue"], wbits: 2 }],
      ["hf", { abits: 4, tokenClips: true, hadamard: true }],
      ...(["nvfp4", "mxfp4"] as const).flatMap((numbers): [FormatName, Wish][] =>
        [4, 16].flatMap((abits): [FormatName, Wish][] =>
          (["compressed-tensors", "aq", "hf", "gguf-f16"] as const).map((name) => [
            name,
            { numbers, abits },
          ]),
        ),
      ),
      ["modelopt", { numbers: "nvfp4", abits: 4, kept: ["down"] }],
      // What is not quantized need not fit.
      ["awq", { config: { intermediate_size: 700 }, groupSize: 4, kept: ["gate", "up", "down"] }],
    ];
    for (const [name, wish] of fits) {
      expect(formatOf(name).refuses(setting(wish)), `${name} ${JSON.stringify(wish)}`).toBe(
        undefined,
      );
    }
  });

  it("what it carries with a difference, it says", () => {
    const notes = (name: FormatName, wish: Wish): string =>
      formatOf(name).notes(setting(wish)).join("; ");
    const eight = { wbits: 8, abits: 8, symmetric: true, groupSize: 0, tokenClips: true };
    expect(notes("compressed-tensors", eight)).toContain("without the learned clipping");
    expect(notes("compressed-tensors", { wbits: 3 })).toContain("0.18");
    expect(notes("compressed-tensors", { added: ["norm1.residue"] })).toContain("experimental");
    expect(notes("gguf", { wbits: 3 })).toContain("3-bit codes lie in Q4_0");
    expect(notes("gguf", { config: { intermediate_size: 700 } })).toContain("down (700)");
    expect(notes("hf", { hadamard: true })).toContain("refuse");
    expect(notes("awq", {})).toBe("");
    expect(notes("modelopt", { numbers: "nvfp4" })).toContain("1 / g");
    expect(notes("compressed-tensors", { numbers: "nvfp4", abits: 4 })).toContain("Blackwell");
    expect(notes("gguf-f16", { numbers: "nvfp4", abits: 4 })).toContain("4-bit activations out");
  });
});

describe("a target", () => {
  it.each<[TargetName, Wish, FormatName]>([
    ["vllm", {}, "awq"],
    ["vllm", { groupSize: 0 }, "compressed-tensors"],
    ["vllm", { symmetric: true }, "compressed-tensors"],
    ["vllm", { wbits: 3, symmetric: true }, "compressed-tensors"],
    ["vllm", { wbits: 8 }, "compressed-tensors"],
    ["vllm", { wbits: 8, abits: 8, symmetric: true, groupSize: 0 }, "compressed-tensors"],
    ["vllm", { abits: 4, symmetric: true }, "compressed-tensors"],
    ["vllm", { folder: OPT }, "awq"],
    ["vllm", { added: ["norm1.residue"] }, "compressed-tensors"],
    ["sglang", {}, "awq"],
    ["sglang", { symmetric: true }, "compressed-tensors"],
    ["sglang", { wbits: 3 }, "gptq_v2"],
    ["sglang", { wbits: 2, symmetric: true }, "gptq"],
    ["transformers", {}, "compressed-tensors"],
    ["transformers", { wbits: 3 }, "gptq_v2"],
    ["transformers", { wbits: 2, symmetric: true }, "gptq"],
    ["transformers", { abits: 4, tokenClips: true }, "hf"],
    ["llama.cpp", {}, "gguf"],
    ["llama.cpp", { wbits: 2 }, "gguf"],
    ["vllm", { numbers: "nvfp4", abits: 4 }, "compressed-tensors"],
    ["vllm", { numbers: "nvfp4" }, "compressed-tensors"],
    ["vllm", { numbers: "mxfp4", abits: 4 }, "compressed-tensors"],
    ["vllm", { kept: ["q", "k", "v"], keptFirst: ["down"] }, "awq"],
    ["sglang", { numbers: "nvfp4", abits: 4 }, "modelopt"],
    ["tensorrt-llm", { numbers: "nvfp4", abits: 4 }, "modelopt"],
    ["tensorrt-llm", { numbers: "nvfp4" }, "modelopt"],
    ["tensorrt-llm", { numbers: "mxfp4" }, "compressed-tensors"],
    ["transformers", { numbers: "nvfp4", abits: 4, kept: ["q"] }, "compressed-tensors"],
    ["transformers", { numbers: "mxfp4" }, "compressed-tensors"],
  ])("%s with %j gets %s", (target, wish, format) => {
    expect(formatFor(target, setting(wish)).name).toBe(format);
  });

  it.each<[TargetName, Wish, string]>([
    ["vllm", { wbits: 3 }, "asymmetric grids of 4 and 8 bits alone"],
    ["vllm", { groupSize: 16 }, "groups of 32, 64 and 128"],
    ["vllm", { hadamard: true }, "--hadamard none"],
    ["vllm", { abits: 4, symmetric: true, tokenClips: true }, "no server today"],
    ["sglang", { abits: 4, tokenClips: true }, "nearest are --abits 8 --wbits 8 --symmetric"],
    ["llama.cpp", { abits: 4, tokenClips: true }, "4-bit q, k and v"],
    ["llama.cpp", { folder: OPT }, "no OPT"],
    ["transformers", { abits: 4, hadamard: true }, "at run time"],
    ["transformers", { added: ["norm1.residue"] }, "at run time"],
    ["sglang", { added: ["norm1.residue"] }, "transform_config"],
    ["vllm", { numbers: "nvfp4", kept: ["q"] }, "q, k, v as one linear"],
    ["vllm", { keptFirst: ["gate"] }, "gate, up as one linear"],
    ["sglang", { numbers: "nvfp4" }, "with --scheme NVFP4"],
    ["sglang", { numbers: "mxfp4", abits: 4 }, "with --scheme NVFP4"],
    ["tensorrt-llm", {}, "NVFP4 alone, and this run is W4A16"],
    ["tensorrt-llm", { numbers: "mxfp4", abits: 4 }, "MXFP4A16 or NVFP4"],
    ["llama.cpp", { numbers: "nvfp4" }, "whole numbers alone"],
  ])("%s with %j is told why there is none", (target, wish, part) => {
    expectAqError(() => formatFor(target, setting(wish)), "AQ_MODEL", target, part);
  });

  it("or a format that does not exist is an error with those that do", () => {
    expectAqError(() => formatFor("ollama", setting({})), "AQ_ARG", "ollama", "llama.cpp");
    expectAqError(() => formatOf("exl2"), "AQ_ARG", "exl2", "compressed-tensors");
    expect(TARGET_NAMES).toEqual(["vllm", "sglang", "tensorrt-llm", "transformers", "llama.cpp"]);
  });
});
