/** LLaMA: RMSNorm, rotary attention with grouped key/value heads, SwiGLU. LLaMA 1, 2, 3 and kin. */

import type { Graph, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { attention } from "../autograd/ops/attention.ts";
import { linear } from "../autograd/ops/linear.ts";
import { rmsNorm } from "../autograd/ops/rms-norm.ts";
import { rope } from "../autograd/ops/rope.ts";
import { siluMul } from "../autograd/ops/silu-mul.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { pick, withResidue } from "./added.ts";
import { type LlamaConfig, readLlamaConfig, ropeTables } from "./config.ts";
import type {
  AttendJoined,
  BlockContext,
  HadamardDown,
  LinearSpec,
  Model,
  ModelExtras,
  ModelFamily,
  ResidualSpec,
  SiteSpec,
  TensorSpec,
  Weights,
} from "./family.ts";
import { checkHadamard, transformDown, withHadamard } from "./hadamard-down.ts";
import { addProject, joinedKey, normFor, project, roundingFor, siluMulJoined } from "./joined.ts";

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

/** Keys of weights that are joined. */
const QKV = joinedKey(["q", "k", "v"]);
const GATE_UP = joinedKey(["gate", "up"]);

const NORMS = { norm1: "input_layernorm", norm2: "post_attention_layernorm" } as const;

const SITES: readonly SiteSpec[] = [
  { kind: "updown", up: "up", down: "down", activation: "down" },
  { kind: "norm", norm: "norm1", consumers: ["q", "k", "v"], activation: "norm1" },
  { kind: "norm", norm: "norm2", consumers: ["gate", "up"], activation: "norm2", lead: "up" },
  { kind: "vo", v: "v", o: "o", activation: "o" },
  { kind: "qk-pairs", q: "q", k: "k" },
];

class Llama implements Model {
  readonly family = "llama";
  readonly shape: Model["shape"];
  readonly traits: Model["traits"];
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
  readonly #config: LlamaConfig;
  readonly #prefix: string;
  readonly #extras: ModelExtras;

  constructor(config: LlamaConfig, prefix: string, extras: ModelExtras) {
    this.#config = config;
    this.#prefix = prefix;
    this.#extras = extras;
    this.hadamardDown = checkHadamard(extras.hadamardDown, config.mlp);
    this.sites = this.hadamardDown ? SITES.filter(({ kind }) => kind !== "updown") : SITES;
    const { hidden: c, heads, kvHeads, headDim: d, mlp: f } = config;
    this.shape = {
      hidden: c,
      blocks: config.layers,
      heads,
      kvHeads,
      headDim: d,
      mlp: f,
      vocabulary: config.vocab,
      maxTokens: config.maxTokens,
    };
    this.traits = {
      tiedHead: config.tiedHead,
      attentionBias: config.attentionBias,
      mlpBias: config.mlpBias,
      rope: `${config.ropeScaling.type}, theta ${config.ropeTheta}`,
    };
    this.linears = [
      { key: "q", out: heads * d, in: c, activation: "norm1" },
      { key: "k", out: kvHeads * d, in: c, activation: "norm1" },
      { key: "v", out: kvHeads * d, in: c, activation: "norm1" },
      { key: "o", out: c, in: heads * d, activation: "o" },
      { key: "gate", out: f, in: c, activation: "norm2" },
      { key: "up", out: f, in: c, activation: "norm2" },
      { key: "down", out: c, in: f, activation: "down" },
    ];
  }

  blockTensors(i: number): readonly TensorSpec[] {
    const at = `${this.#prefix}layers.${i}.`;
    const c = this.#config.hidden;
    const specs: TensorSpec[] = Object.entries(NORMS).map(([key, name]) => ({
      key,
      name: `${at}${name}.weight`,
      shape: [c],
    }));
    for (const { key, out, in: columns } of this.linears) {
      const name = `${at}${LINEARS[key as keyof typeof LINEARS]}`;
      specs.push({ key, name: `${name}.weight`, shape: [out, columns] });
      if (this.#isBiased(key))
        specs.push({ key: `${key}.bias`, name: `${name}.bias`, shape: [out] });
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
    const unbiased = this.linears.filter(({ key }) => !this.#isBiased(key));
    const biases = unbiased.map(({ key, out }) => ({
      key: `${key}.bias`,
      name: `${at}${LINEARS[key as keyof typeof LINEARS]}.bias`,
      shape: [out],
    }));
    return [...norms, ...biases];
  }

  #isBiased(key: string): boolean {
    return "qkvo".includes(key) ? this.#config.attentionBias : this.#config.mlpBias;
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
    if (context.attendJoined && w[QKV]) return this.#joinedBlock(graph, context, w, x);
    const { heads, kvHeads, headDim, rmsEps } = this.#config;
    const cos = graph.constant(context.tensors["cos"] as Tensor);
    const sin = graph.constant(context.tensors["sin"] as Tensor);
    const project = (input: Var, key: string): Var =>
      linear(graph, input, w[key] as Var, w[`${key}.bias`]);
    const norm = (input: Var, key: string): Var => {
      const normed = rmsNorm(graph, input, w[key] as Var, rmsEps, w[`${key}.beta`]);
      return activations.apply(graph, key, withResidue(graph, normed, w, key), 0);
    };

    const h1 = norm(x, "norm1");
    const q = rope(graph, project(h1, "q"), cos, sin, heads);
    const k = rope(graph, project(h1, "k"), cos, sin, kvHeads);
    const o = (context.attend ?? attention)(
      graph,
      activations.apply(graph, "q", q, headDim),
      activations.apply(graph, "k", k, headDim),
      activations.apply(graph, "v", project(h1, "v"), headDim),
      { heads, kvHeads, scale: 1 / Math.sqrt(headDim) },
    );
    const middle = add(graph, x, project(activations.apply(graph, "o", o, 0), "o"));

    const h2 = norm(middle, "norm2");
    const gated = siluMul(graph, project(h2, "gate"), project(h2, "up"));
    const m = transformDown(graph, context, gated);
    return add(graph, middle, project(activations.apply(graph, "down", m, 0), "down"));
  }

  /** The same for weights that are joined. */
  #joinedBlock(graph: Graph, context: BlockContext, w: Weights, x: Var): Var {
    const { heads, kvHeads, headDim, rmsEps: eps } = this.#config;
    const norm = (input: Var, key: string, round: number): Var => {
      const gain = { w: w[key] as Var, b: w[`${key}.beta`], eps, centred: false };
      const isLast = w[`${key}.residue`] === undefined;
      return withResidue(graph, normFor(graph, input, gain, isLast ? round : 0), w, key);
    };
    const roundFor = (key: string): number => roundingFor(w[key] as Var);

    const { cos, sin } = context.tensors as { readonly cos: Tensor; readonly sin: Tensor };
    const qkv = project(graph, norm(x, "norm1", roundFor(QKV)), w, QKV);
    const o = (context.attendJoined as AttendJoined)(graph, qkv, {
      heads,
      kvHeads,
      scale: 1 / Math.sqrt(headDim),
      turn: { cos, sin },
      round: roundFor("o"),
    });
    const middle = addProject(graph, x, o, w, "o");

    const h2 = norm(middle, "norm2", w[GATE_UP] ? roundFor(GATE_UP) : 0);
    const gated = w[GATE_UP]
      ? siluMulJoined(
          graph,
          project(graph, h2, w, GATE_UP),
          context.hadamardDown ? 0 : roundFor("down"),
        )
      : siluMul(graph, project(graph, h2, w, "gate"), project(graph, h2, w, "up"));
    return addProject(graph, middle, transformDown(graph, context, gated), w, "down");
  }

  head(graph: Graph, outer: Weights, x: Var): Var {
    const normed = rmsNorm(graph, x, outer["norm"] as Var, this.#config.rmsEps);
    return linear(graph, normed, (outer["head"] ?? outer["embedding"]) as Var);
  }
}

export const llama: ModelFamily = {
  modelTypes: ["llama"],
  open(config, has, extras = {}) {
    // Checkpoints of the bare model lack the "model." in front.
    const prefix = has("model.embed_tokens.weight") || !has("embed_tokens.weight") ? "model." : "";
    return new Llama(readLlamaConfig(config), prefix, extras);
  },
};
