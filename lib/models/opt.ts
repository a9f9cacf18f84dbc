/** OPT: LayerNorm before each half, learned positions, biases everywhere, a relu MLP. */

import type { Graph, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { attention } from "../autograd/ops/attention.ts";
import { layerNorm } from "../autograd/ops/layer-norm.ts";
import { linear } from "../autograd/ops/linear.ts";
import { relu } from "../autograd/ops/relu.ts";
import type { ActivationHook } from "../quant/activations.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { pick, withResidue } from "./added.ts";
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
import { addProject, joinedKey, normFor, project, roundingFor } from "./joined.ts";
import { type OptConfig, readOptConfig } from "./opt-config.ts";

const LINEARS = {
  q: "self_attn.q_proj",
  k: "self_attn.k_proj",
  v: "self_attn.v_proj",
  o: "self_attn.out_proj",
  up: "fc1",
  down: "fc2",
} as const;

/** Key of weights that are joined. */
const QKV = joinedKey(["q", "k", "v"]);

const NORMS = { norm1: "self_attn_layer_norm", norm2: "final_layer_norm" } as const;

const SITES: readonly SiteSpec[] = [
  { kind: "updown", up: "up", down: "down", activation: "down" },
  { kind: "norm", norm: "norm1", consumers: ["q", "k", "v"], activation: "norm1" },
  { kind: "norm", norm: "norm2", consumers: ["up"], activation: "norm2" },
  { kind: "vo", v: "v", o: "o", activation: "o" },
  { kind: "qk-matrix", q: "q", k: "k" },
];

/** The positions table starts with two rows that no token uses. */
const POSITION_OFFSET = 2;
const EPS = 1e-5;

class Opt implements Model {
  readonly family = "opt";
  readonly shape: Model["shape"];
  readonly traits: Model["traits"];
  readonly rotary = null;
  readonly linears: readonly LinearSpec[];
  readonly activations = ["norm1", "q", "k", "v", "o", "norm2", "down"];
  readonly sites: readonly SiteSpec[];
  readonly residual: ResidualSpec = {
    reads: [
      { norm: "norm1", consumers: ["q", "k", "v"] },
      { norm: "norm2", consumers: ["up"] },
    ],
    writes: ["o", "down"],
    embeddings: ["embedding", "positions"],
    centred: true,
  };
  readonly hadamardDown: HadamardDown | null;
  readonly #config: OptConfig;
  readonly #prefix: string;
  readonly #extras: ModelExtras;

  constructor(config: OptConfig, prefix: string, extras: ModelExtras) {
    this.#config = config;
    this.#prefix = prefix;
    this.#extras = extras;
    this.hadamardDown = checkHadamard(extras.hadamardDown, config.mlp);
    this.sites = this.hadamardDown ? SITES.filter(({ kind }) => kind !== "updown") : SITES;
    const { hidden: c, heads, mlp: f } = config;
    this.shape = {
      hidden: c,
      blocks: config.layers,
      heads,
      kvHeads: heads,
      headDim: c / heads,
      mlp: f,
      vocabulary: config.vocab,
      maxTokens: config.maxTokens,
    };
    this.traits = {
      tiedHead: config.tiedHead,
      attentionBias: config.bias,
      mlpBias: config.bias,
      rope: "none, learned positions",
    };
    this.linears = [
      { key: "q", out: c, in: c, activation: "norm1" },
      { key: "k", out: c, in: c, activation: "norm1" },
      { key: "v", out: c, in: c, activation: "norm1" },
      { key: "o", out: c, in: c, activation: "o" },
      { key: "up", out: f, in: c, activation: "norm2" },
      { key: "down", out: c, in: f, activation: "down" },
    ];
  }

  blockTensors(i: number): readonly TensorSpec[] {
    const at = `${this.#prefix}layers.${i}.`;
    const c = this.#config.hidden;
    const specs: TensorSpec[] = Object.entries(NORMS).flatMap(([key, name]) => [
      { key, name: `${at}${name}.weight`, shape: [c] },
      { key: `${key}.beta`, name: `${at}${name}.bias`, shape: [c] },
    ]);
    for (const { key, out, in: columns } of this.linears) {
      const name = `${at}${LINEARS[key as keyof typeof LINEARS]}`;
      specs.push({ key, name: `${name}.weight`, shape: [out, columns] });
      if (this.#config.bias) specs.push({ key: `${key}.bias`, name: `${name}.bias`, shape: [out] });
    }
    return [...specs, ...pick(this.#addable(i), this.#extras.added)];
  }

  /** Tensors that the architecture lacks and the block would apply. */
  #addable(i: number): readonly TensorSpec[] {
    const at = `${this.#prefix}layers.${i}.`;
    const c = this.#config.hidden;
    const residues = Object.entries(NORMS).map(([key, name]) => ({
      key: `${key}.residue`,
      name: `${at}${name}.residue`,
      shape: [c, c],
    }));
    if (this.#config.bias) return residues;
    const biases = this.linears.map(({ key, out }) => ({
      key: `${key}.bias`,
      name: `${at}${LINEARS[key as keyof typeof LINEARS]}.bias`,
      shape: [out],
    }));
    return [...residues, ...biases];
  }

  outerTensors(): readonly TensorSpec[] {
    const { hidden: c, vocab: v, maxTokens, tiedHead } = this.#config;
    const specs: TensorSpec[] = [
      { key: "embedding", name: `${this.#prefix}embed_tokens.weight`, shape: [v, c] },
      {
        key: "positions",
        name: `${this.#prefix}embed_positions.weight`,
        shape: [maxTokens + POSITION_OFFSET, c],
      },
      { key: "norm", name: `${this.#prefix}final_layer_norm.weight`, shape: [c] },
      { key: "norm.beta", name: `${this.#prefix}final_layer_norm.bias`, shape: [c] },
    ];
    if (!tiedHead) specs.push({ key: "head", name: this.headName(), shape: [v, c] });
    return specs;
  }

  headName(): string {
    return "lm_head.weight";
  }

  context(_tokens: number, dtype: "f32" | "f64", device = "cpu"): BlockContext {
    return withHadamard({ device, tensors: {}, dispose: () => {} }, this.hadamardDown, dtype);
  }

  embed(
    outer: Readonly<Record<string, Tensor>>,
    ids: Tensor,
    positions?: Tensor | undefined,
  ): Tensor {
    const f32 = dtypeCode("f32");
    const { hidden, maxTokens } = this.#config;
    const table = outer["positions"]?.view(POSITION_OFFSET * hidden, [maxTokens, hidden]);
    const states = invokeOne("gather_rows", [outer["embedding"], ids], { dtype: f32 });
    const places = positions ?? firstPlaces(ids);
    const added = invokeOne("gather_rows", [table, places.reshape(ids.shape)], { dtype: f32 });
    invoke("axpy", [states, added], { alpha: 1 });
    return states;
  }

  block(graph: Graph, context: BlockContext, w: Weights, x: Var, activations: ActivationHook): Var {
    if (context.attendJoined && w[QKV]) return this.#joinedBlock(graph, context, w, x);
    const { heads } = this.#config;
    const headDim = this.shape.headDim;
    const project = (input: Var, key: string): Var =>
      linear(graph, input, w[key] as Var, w[`${key}.bias`]);
    const norm = (input: Var, key: string): Var => {
      const normed = layerNorm(graph, input, w[key] as Var, w[`${key}.beta`] as Var, EPS);
      return activations.apply(graph, key, withResidue(graph, normed, w, key), 0);
    };

    const h1 = norm(x, "norm1");
    const o = (context.attend ?? attention)(
      graph,
      activations.apply(graph, "q", project(h1, "q"), headDim),
      activations.apply(graph, "k", project(h1, "k"), headDim),
      activations.apply(graph, "v", project(h1, "v"), headDim),
      { heads, kvHeads: heads, scale: 1 / Math.sqrt(headDim) },
    );
    const middle = add(graph, x, project(activations.apply(graph, "o", o, 0), "o"));
    const m = transformDown(graph, context, relu(graph, project(norm(middle, "norm2"), "up")));
    return add(graph, middle, project(activations.apply(graph, "down", m, 0), "down"));
  }

  /** The same for weights that are joined. */
  #joinedBlock(graph: Graph, context: BlockContext, w: Weights, x: Var): Var {
    const { heads } = this.#config;
    const norm = (input: Var, key: string, reader: string): Var => {
      const gain = { w: w[key] as Var, b: w[`${key}.beta`], eps: EPS, centred: true };
      const round = w[`${key}.residue`] ? 0 : roundingFor(w[reader] as Var);
      return withResidue(graph, normFor(graph, input, gain, round), w, key);
    };
    const qkv = project(graph, norm(x, "norm1", QKV), w, QKV);
    const o = (context.attendJoined as AttendJoined)(graph, qkv, {
      heads,
      kvHeads: heads,
      scale: 1 / Math.sqrt(this.shape.headDim),
      turn: undefined,
      round: roundingFor(w["o"] as Var),
    });
    const middle = addProject(graph, x, o, w, "o");
    const up = project(graph, norm(middle, "norm2", "up"), w, "up");
    const m = transformDown(graph, context, relu(graph, up));
    return addProject(graph, middle, m, w, "down");
  }

  head(graph: Graph, outer: Weights, x: Var): Var {
    const normed = layerNorm(graph, x, outer["norm"] as Var, outer["norm.beta"] as Var, EPS);
    return linear(graph, normed, (outer["head"] ?? outer["embedding"]) as Var);
  }
}

/** 0 .. T - 1 for each row of ids [B, T]. */
function firstPlaces(ids: Tensor): Tensor {
  const tokens = ids.shape.at(-1) as number;
  const places = Int32Array.from({ length: ids.size }, (_, i) => i % tokens);
  return Tensor.from(places, undefined, "i32", ids.device);
}

export const opt: ModelFamily = {
  modelTypes: ["opt"],
  architecture: "OPTForCausalLM",
  open(config, has, extras = {}) {
    // Checkpoints of the bare model lack the "model." in front.
    const bare = !has("model.decoder.embed_tokens.weight") && has("decoder.embed_tokens.weight");
    return new Opt(readOptConfig(config), bare ? "decoder." : "model.decoder.", extras);
  },
};
