/**
 * A finished run of a random model, written without calibration and without the package's writers: any
 * shape, any grid, and codes that a test knows.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { BF16, F16, halfToBits } from "./half.ts";
import { randomFloats, type SyntheticFloats } from "./synthetic-floats.ts";
import { type StoredTensor, writeTensors } from "./tensor-file.ts";

export interface SyntheticSettings {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlp: number;
  readonly blocks: number;
  readonly bits: number;
  readonly abits?: number;
  readonly groupSize: number;
  readonly symmetric: boolean;
  readonly published?: boolean;
  /** 4-bit floats; then bits, groupSize and symmetric are those of the format. */
  readonly numbers?: "nvfp4" | "mxfp4";
  /** Ends of names of linears that are not quantized, in every block: "down_proj". */
  readonly kept?: readonly string[];
  readonly attentionBias?: boolean;
  /** What is built like LLaMA; qwen2 has biases at q, k and v, qwen3 norms of q and k. */
  readonly family?: "llama" | "mistral" | "qwen2" | "qwen3";
  readonly tied?: boolean;
  /** Embedding, norm and head are bfloat16. */
  readonly bfloat16?: boolean;
  /** Further keys of config.json. */
  readonly config?: object;
  readonly seed: number;
}

export interface SyntheticLinear {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  readonly group: number;
  readonly groups: number;
  readonly codes: Uint8Array;
  /** Bits of float16. */
  readonly scales: Uint16Array;
  readonly zeros: number[];
  /** Of 4-bit floats, which have neither of the two above. */
  readonly floats?: SyntheticFloats;
}

export interface SyntheticRun {
  readonly dir: string;
  readonly linears: readonly SyntheticLinear[];
  readonly plain: ReadonlyMap<string, Float32Array>;
  readonly outer: ReadonlyMap<string, StoredTensor>;
}

export const SMALL_SHAPE = {
  hidden: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  mlp: 96,
  blocks: 2,
  groupSize: 32,
} as const;

/** Tokens of the synthetic models. */
export const VOCABULARY = 7;

const TOKENIZER = {
  version: "1.0",
  added_tokens: [
    { id: 0, content: "<s>", special: true },
    { id: 1, content: "</s>", special: true },
    { id: 5, content: "<note>", special: false },
  ],
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel" },
  model: { type: "BPE", vocab: { "<s>": 0, "</s>": 1, a: 2, b: 3, ab: 4 }, merges: ["a b"] },
};

const CLASSES = {
  llama: "LlamaForCausalLM",
  mistral: "MistralForCausalLM",
  qwen2: "Qwen2ForCausalLM",
  qwen3: "Qwen3ForCausalLM",
} as const;

/** Writes the run into an empty folder. */
export function syntheticRun(dir: string, settings: SyntheticSettings): SyntheticRun {
  const { hidden, heads, kvHeads, headDim, mlp, blocks, attentionBias = false } = settings;
  const { tied = false, family = "llama" } = settings;
  const random = generator(settings.seed);
  fs.mkdirSync(path.join(dir, "aq", "blocks"), { recursive: true });
  const config = {
    architectures: [CLASSES[family]],
    model_type: family,
    hidden_act: "silu",
    hidden_size: hidden,
    intermediate_size: mlp,
    num_hidden_layers: blocks,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 10000.0,
    tie_word_embeddings: tied,
    attention_bias: attentionBias,
    mlp_bias: false,
    vocab_size: VOCABULARY,
    bos_token_id: 0,
    eos_token_id: 1,
    torch_dtype: "float16",
    ...settings.config,
  };
  json(path.join(dir, "config.json"), config);
  json(path.join(dir, "tokenizer.json"), TOKENIZER);
  json(path.join(dir, "tokenizer_config.json"), { bos_token: "<s>", eos_token: "</s>" });
  const linears: SyntheticLinear[] = [];
  const plain = new Map<string, Float32Array>();
  const outer = new Map<string, StoredTensor>();
  const whole = new Map<string, StoredTensor>();
  const put = (name: string, shape: number[]): void => {
    const numbers = Float32Array.from({ length: product(shape) }, () => 2 * random() - 1);
    const tensor = halves(numbers, shape, settings.bfloat16 ? BF16 : F16);
    outer.set(name, tensor);
    whole.set(name, tensor);
  };
  put("model.embed_tokens.weight", [VOCABULARY, hidden]);
  const finished: object[] = [];
  const globals: object[] = [];
  for (let i = 0; i < blocks; i++) {
    const at = `model.layers.${i}.`;
    const state = new Map<string, StoredTensor>();
    const norm = (name: string, size: number): void => {
      const numbers = Float32Array.from({ length: size }, () => 0.5 + random());
      plain.set(name, numbers);
      state.set(name, { dtype: "F32", shape: [size], bytes: bytesOf(numbers) });
      whole.set(name, halves(numbers, [size]));
    };
    norm(`${at}input_layernorm.weight`, hidden);
    norm(`${at}post_attention_layernorm.weight`, hidden);
    if (family === "qwen3") {
      for (const key of ["q", "k"]) norm(`${at}self_attn.${key}_norm.weight`, headDim);
    }
    const shapes: [string, number, number, string][] = [
      ["self_attn.q_proj", heads * headDim, hidden, "norm1"],
      ["self_attn.k_proj", kvHeads * headDim, hidden, "norm1"],
      ["self_attn.v_proj", kvHeads * headDim, hidden, "norm1"],
      ["self_attn.o_proj", hidden, heads * headDim, "o"],
      ["mlp.gate_proj", mlp, hidden, "norm2"],
      ["mlp.up_proj", mlp, hidden, "norm2"],
      ["mlp.down_proj", hidden, mlp, "down"],
    ];
    const inputs: Record<string, number> = {};
    for (const [name, rows, columns, reads] of shapes) {
      const full = `${at}${name}.weight`;
      whole.set(full, halves(new Float32Array(rows * columns), [rows, columns]));
      if (settings.kept?.some((end) => name.endsWith(end))) {
        const numbers = Float32Array.from({ length: rows * columns }, () => random() - 0.5);
        plain.set(full, numbers);
        state.set(full, { dtype: "F32", shape: [rows, columns], bytes: bytesOf(numbers) });
        continue;
      }
      if (settings.numbers) {
        if (settings.numbers === "nvfp4" && settings.abits === 4) {
          inputs[reads] ??= Math.fround(100 + 1000 * random());
        }
        const input = inputs[reads] ?? null;
        const floats = randomFloats(rows, columns, settings.numbers, input, random);
        const { scaleBytes: bytes, global, group, codes } = floats;
        const groups = columns / group;
        const size = { name: full, rows, columns, group, groups, codes };
        linears.push({ ...size, scales: new Uint16Array(), zeros: [], floats });
        state.set(`${full}.codes`, { dtype: "U8", shape: [rows, columns], bytes: codes });
        state.set(`${full}.scale`, { dtype: "U8", shape: [rows, groups], bytes });
        if (global !== null) {
          const one = bytesOf(Float32Array.of(global));
          state.set(`${full}.global`, { dtype: "F32", shape: [1], bytes: one });
        }
        continue;
      }
      const linear = randomLinear(full, rows, columns, settings, random);
      linears.push(linear);
      const { groups } = linear;
      const isWide = linear.zeros.some((z) => z < 0 || z > 255);
      const zeros = isWide ? Float32Array.from(linear.zeros) : Uint8Array.from(linear.zeros);
      state.set(`${linear.name}.codes`, {
        dtype: "U8",
        shape: [rows, columns],
        bytes: linear.codes,
      });
      state.set(`${linear.name}.scale`, {
        dtype: "F16",
        shape: [rows, groups],
        bytes: bytesOf(linear.scales),
      });
      state.set(`${linear.name}.zero`, {
        dtype: isWide ? "F32" : "U8",
        shape: [rows, groups],
        bytes: bytesOf(zeros),
      });
      const isBiased = family === "qwen2" ? /[qkv]_proj/.test(name) : attentionBias;
      if (isBiased && name.startsWith("self_attn")) norm(`${at}${name}.bias`, rows);
    }
    // Bytes of odd sizes last, so that what is behind them is where its type wants it.
    const file = path.join(dir, "aq", "blocks", `block-${String(i).padStart(4, "0")}.safetensors`);
    writeTensors(file, new Map([...state].sort(([, a], [, b]) => widthOf(b) - widthOf(a))));
    const sha256 = createHash("sha256").update(fs.readFileSync(file)).digest("hex");
    finished.push({ sha256, report: {}, tokenClips: {}, inputGlobals: inputs });
    globals.push(inputs);
  }
  json(path.join(dir, "aq_config.json"), aqConfig(settings, globals));
  put("model.norm.weight", [hidden]);
  if (!tied) put("lm_head.weight", [VOCABULARY, hidden]);
  writeTensors(path.join(dir, "model.safetensors"), whole);
  json(path.join(dir, "aq", "job.json"), {
    format: 1,
    writtenBy: "a test",
    status: "done",
    model: "/models/synthetic",
    text: "none",
    identity: {},
    blocks,
    notes: [],
    pplBefore: 1,
    finished,
    seconds: 1,
    result: {},
  });
  return { dir, linears, plain, outer };
}

/** Keys of the blocks' linears by the ends of their names. */
const KEYS = ["q", "k", "v", "o", "gate", "up", "down"] as const;

function aqConfig(settings: SyntheticSettings, globals: readonly object[]): object {
  const { bits, abits = 16, groupSize, symmetric, published = false, blocks } = settings;
  const { numbers, kept = [] } = settings;
  const activations = {
    bits: abits,
    ...(numbers ? {} : { scale_floor: 1e-6 }),
    ...(numbers === "nvfp4" ? { global_scales: globals } : {}),
    clip_logits: new Array(blocks).fill({}),
  };
  const keys = KEYS.filter((key) => kept.includes(`${key}_proj`));
  return {
    format: 1,
    written_by: "a test",
    wbits: bits,
    abits,
    group_size: groupSize,
    symmetric,
    ...(numbers ? { numbers } : {}),
    ...(keys.length > 0 ? { kept: new Array(blocks).fill(keys) } : {}),
    recipe: "rtn",
    ...(published ? { grids: "published" } : {}),
    sites: [],
    activations: abits < 16 ? activations : null,
  };
}

function randomLinear(
  name: string,
  rows: number,
  columns: number,
  { bits, groupSize, symmetric, published }: SyntheticSettings,
  random: () => number,
): SyntheticLinear {
  const groups = groupSize ? Math.ceil(columns / groupSize) : 1;
  const top = 2 ** bits - 1;
  const below = (n: number): number => Math.floor(n * random());
  const zeroOf = (i: number): number => {
    if (symmetric) return 2 ** (bits - 1) - (published ? 1 : 0);
    // The published grids go beyond the codes where all weights of a group have one sign.
    if (published && i === 2) return -300;
    // Both ends for certain: formats differ there.
    return i === 0 ? 0 : i === 1 ? top : below(top + 1);
  };
  return {
    name,
    rows,
    columns,
    group: groupSize || columns,
    groups,
    codes: Uint8Array.from({ length: rows * columns }, () => below(top + 1)),
    scales: Uint16Array.from({ length: rows * groups }, () =>
      halfToBits(0.001 + random() / 16, F16),
    ),
    zeros: Array.from({ length: rows * groups }, (_, i) => zeroOf(i)),
  };
}

/** Weights of a linear in float64, (q - z) s. */
export function exactWeights(
  { rows, columns, group, groups, codes, zeros }: SyntheticLinear,
  scales: ArrayLike<number>,
): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, at) => {
    const g = Math.floor(at / columns) * groups + Math.floor((at % columns) / group);
    return ((codes[at] as number) - (zeros[g] as number)) * (scales[g] as number);
  });
}

function halves(numbers: Float32Array, shape: number[], format = F16): StoredTensor {
  const bits = Uint16Array.from(numbers, (x) => halfToBits(x, format));
  return { dtype: format === F16 ? "F16" : "BF16", shape, bytes: bytesOf(bits) };
}

function bytesOf(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function widthOf({ dtype }: StoredTensor): number {
  return { F32: 4, F16: 2 }[dtype] ?? 1;
}

function product(shape: readonly number[]): number {
  return shape.reduce((all, d) => all * d, 1);
}

function json(file: string, value: object): void {
  fs.writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
}

/** Numbers in [0, 1) from a seed. */
function generator(seed: number): () => number {
  let state = (seed * 2654435761 + 1) >>> 0;
  return () => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 2 ** 32;
  };
}
