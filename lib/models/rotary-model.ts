/**
 * LLaMA and kin: RMSNorm, rotary attention with grouped key/value heads, SwiGLU. Families differ in which
 * linears have biases and in whether q and k have a norm; lib/models/rotary-block.ts runs the block.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { linear } from "../autograd/ops/linear.ts";
import { rmsNorm } from "../autograd/ops/rms-norm.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { pick } from "./added.ts";
import type {
  BlockContext,
  HadamardDown,
  LinearSpec,
  Model,
  ModelExtras,
  ResidualSpec,
  SiteSpec,
  TensorSpec,
  Weights,
} from "./family.ts";
import { checkHadamard, withHadamard } from "./hadamard-down.ts";
import { ropeTables } from "./rope.ts";
import { HEAD_NORMS, rotaryBlock } from "./rotary-block.ts";
import type { RotaryConfig } from "./rotary-config.ts";

/** Keys of the block's linears and their names in a checkpoint, in the order in which they run. */
const LINEARS = {
  q: "self_attn.q_proj",
  k: "self_attn.k_proj",
  v: "self_attn.v_proj",
  o: "self_attn.o_proj",
  gate: "mlp.gate_proj",
  up: "mlp.up_proj",
  down: "mlp.down_proj",
} as const;

const NORMS = { norm1: "input_layernorm", norm2: "post_attention_layernorm" } as const;

/** Names of the norms of q and k, where a family has them. */
const HEAD_NORM_NAMES = { q: "self_attn.q_norm", k: "self_attn.k_norm" } as const;

/** Before q and k come their own sites: a norm behind them cancels what pairs would scale. */
const SITES: readonly SiteSpec[] = [
  { kind: "updown", up: "up", down: "down", activation: "down" },
  { kind: "norm", norm: "norm1", consumers: ["q", "k", "v"], activation: "norm1" },
  { kind: "norm", norm: "norm2", consumers: ["gate", "up"], activation: "norm2", lead: "up" },
  { kind: "vo", v: "v", o: "o", activation: "o" },
];
const PAIRS: SiteSpec = { kind: "qk-pairs", q: "q", k: "k" };
const GAINS: SiteSpec = { kind: "qk-gains", q: HEAD_NORMS.q, k: HEAD_NORMS.k };

/** What a family makes of a configuration. */
export interface RotaryFamily {
  readonly family: string;
  readonly config: RotaryConfig;
  /** Keys of the linears that have biases. */
  readonly biased: readonly string[];
  /** Tokens that attention sees, where that may be fewer than there are positions. */
  readonly slidingWindow?: number | null;
  /** RMSNorm over the features of each head of q and of k. */
  readonly headNorms?: boolean;
}

class RotaryModel implements Model {
  readonly family: string;
  readonly shape: Model["shape"];
  readonly traits: Model["traits"];
  readonly rotary: Model["rotary"];
  readonly linears: readonly LinearSpec[];
  readonly activations = ["norm1", "q", "k", "v", "o", "norm2", "down"];
  readonly sites: readonly SiteSpec[];
  readonly residual: ResidualSpec = {
    reads: [
      { norm: "norm1", consumers: ["q", "k", "v"] },
      { norm: "norm2", consumers: ["gate", "up"] },
    ],
    writes: ["o", "down"],
    embeddings: ["embedding"],
    centred: false,
  };
  readonly hadamardDown: HadamardDown | null;
  readonly #config: RotaryConfig;
  readonly #biased: ReadonlySet<string>;
  readonly #prefix: string;
  readonly #extras: ModelExtras;

  constructor(own: RotaryFamily, prefix: string, extras: ModelExtras) {
    const { family, config, slidingWindow = null, headNorms = false } = own;
    this.family = family;
    this.#config = config;
    this.#biased = new Set(own.biased);
    this.#prefix = prefix;
    this.#extras = extras;
    this.hadamardDown = checkHadamard(extras.hadamardDown, config.mlp);
    const sites = [...SITES, headNorms ? GAINS : PAIRS];
    this.sites = this.hadamardDown ? sites.filter(({ kind }) => kind !== "updown") : sites;
    const { hidden: c, heads, kvHeads, headDim: d, mlp: f, maxTokens } = config;
    const isCut = slidingWindow !== null && slidingWindow < maxTokens;
    this.shape = {
      hidden: c,
      blocks: config.layers,
      heads,
      kvHeads,
      headDim: d,
      mlp: f,
      vocabulary: config.vocab,
      maxTokens: isCut ? slidingWindow : maxTokens,
    };
    this.traits = {
      tiedHead: config.tiedHead,
      attentionBias: this.#biased.has("q"),
      mlpBias: this.#biased.has("up"),
      rope: `${config.ropeScaling.type}, theta ${config.ropeTheta}`,
      ...(isCut ? { slidingWindow } : {}),
      ...(headNorms ? { headNorms } : {}),
    };
    this.rotary = {
      rmsEps: config.rmsEps,
      ropeTheta: config.ropeTheta,
      ropeScaling: config.ropeScaling,
    };
    const alone = headNorms ? { alone: true } : {};
    this.linears = [
      { key: "q", out: heads * d, in: c, activation: "norm1", ...alone },
      { key: "k", out: kvHeads * d, in: c, activation: "norm1", ...alone },
      { key: "v", out: kvHeads * d, in: c, activation: "norm1" },
      { key: "o", out: c, in: heads * d, activation: "o" },
      { key: "gate", out: f, in: c, activation: "norm2" },
      { key: "up", out: f, in: c, activation: "norm2" },
      { key: "down", out: c, in: f, activation: "down" },
    ];
  }

  blockTensors(i: number): readonly TensorSpec[] {
    const at = `${this.#prefix}layers.${i}.`;
    const { hidden: c, headDim } = this.#config;
    const specs: TensorSpec[] = Object.entries(NORMS).map(([key, name]) => ({
      key,
      name: `${at}${name}.weight`,
      shape: [c],
    }));
    for (const { key, out, in: columns } of this.linears) {
      const name = `${at}${LINEARS[key as keyof typeof LINEARS]}`;
      specs.push({ key, name: `${name}.weight`, shape: [out, columns] });
      if (this.#biased.has(key))
        specs.push({ key: `${key}.bias`, name: `${name}.bias`, shape: [out] });
    }
    if (this.traits.headNorms) {
      for (const key of ["q", "k"] as const) {
        const name = `${at}${HEAD_NORM_NAMES[key]}.weight`;
        specs.push({ key: HEAD_NORMS[key], name, shape: [headDim] });
      }
    }
    return [...specs, ...pick(this.#addable(i), this.#extras.added)];
  }

  /** Tensors that the architecture lacks and the block would apply. */
  #addable(i: number): readonly TensorSpec[] {
    const at = `${this.#prefix}layers.${i}.`;
    const c = this.#config.hidden;
    const norms = Object.entries(NORMS).flatMap(([key, name]) => [
      { key: `${key}.beta`, name: `${at}${name}.bias`, shape: [c] },
      { key: `${key}.residue`, name: `${at}${name}.residue`, shape: [c, c] },
    ]);
    const unbiased = this.linears.filter(({ key }) => !this.#biased.has(key));
    const biases = unbiased.map(({ key, out }) => ({
      key: `${key}.bias`,
      name: `${at}${LINEARS[key as keyof typeof LINEARS]}.bias`,
      shape: [out],
    }));
    return [...norms, ...biases];
  }

  outerTensors(): readonly TensorSpec[] {
    const { hidden: c, vocab: v, tiedHead } = this.#config;
    const specs: TensorSpec[] = [
      { key: "embedding", name: `${this.#prefix}embed_tokens.weight`, shape: [v, c] },
      { key: "norm", name: `${this.#prefix}norm.weight`, shape: [c] },
    ];
    if (!tiedHead) specs.push({ key: "head", name: this.headName(), shape: [v, c] });
    return specs;
  }

  headName(): string {
    return "lm_head.weight";
  }

  context(tokens: number, dtype: "f32" | "f64", device = "cpu"): BlockContext {
    const { cos, sin } = ropeTables(this.#config, tokens);
    const shape = [tokens, this.#config.headDim / 2];
    const table = (data: Float32Array): Tensor =>
      Tensor.from(dtype === "f64" ? Float64Array.from(data) : data, shape, dtype, device);
    const tensors = { cos: table(cos), sin: table(sin) };
    const dispose = (): void => {
      tensors.cos.dispose();
      tensors.sin.dispose();
    };
    return withHadamard({ device, tensors, dispose }, this.hadamardDown, dtype);
  }

  embed(outer: Readonly<Record<string, Tensor>>, ids: Tensor): Tensor {
    return invokeOne("gather_rows", [outer["embedding"], ids], { dtype: dtypeCode("f32") });
  }

  block(graph: Graph, context: BlockContext, w: Weights, x: Var, activations: ActivationHook): Var {
    return rotaryBlock(this.#config, graph, context, w, x, activations);
  }

  head(graph: Graph, outer: Weights, x: Var): Var {
    const normed = rmsNorm(graph, x, outer["norm"] as Var, this.#config.rmsEps);
    return linear(graph, normed, (outer["head"] ?? outer["embedding"]) as Var);
  }
}

/** The model, in a checkpoint that tells by `has` how its names begin. */
export function openRotary(
  own: RotaryFamily,
  has: (name: string) => boolean,
  extras: ModelExtras = {},
): Model {
  // Checkpoints of the bare model lack the "model." in front.
  const prefix = has("model.embed_tokens.weight") || !has("embed_tokens.weight") ? "model." : "";
  return new RotaryModel(own, prefix, extras);
}
