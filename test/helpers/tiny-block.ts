/** One decoder block with random weights, small enough for float64 and finite differences. */
import { Eager, type Var } from "../../lib/autograd/graph.ts";
import type { Model } from "../../lib/models/family.ts";
import { openModel } from "../../lib/models/registry.ts";
import { passThrough } from "../../lib/quant/activations.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import type { Draw } from "./random.ts";
import { toTensor } from "./run-op.ts";
import type { FloatType, Value } from "./value.ts";

/** Values by the keys of the block's weights, or by the names of its learned parameters. */
export type Values = Readonly<Record<string, Value>>;

/** Four query heads on two kv heads, biases on every linear; sizes that differ wherever they can. */
const CONFIG = {
  model_type: "llama",
  hidden_size: 8,
  head_dim: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 12,
  num_hidden_layers: 1,
  max_position_embeddings: 64,
  vocab_size: 16,
  rms_norm_eps: 1e-5,
  attention_bias: true,
  mlp_bias: true,
};

/** What makes of it a block with norms of q and k; biases are those of attention then. */
export const HEAD_NORMS = { model_type: "qwen3", mlp_bias: false } as const;

export function tinyModel(changes: Readonly<Record<string, unknown>> = {}): Model {
  return openModel({ ...CONFIG, ...changes }, () => true);
}

/** Weights of the usual size, gains around one, biases large enough to matter. */
export function tinyWeights(model: Model, draw: Draw): Values {
  return Object.fromEntries(
    model.blockTensors(0).map(({ key, shape }) => {
      if (key.includes("norm")) return [key, draw.normal(shape, 0.2, 1)];
      if (key.endsWith(".bias")) return [key, draw.normal(shape, 0.3)];
      return [key, draw.normal(shape, 1 / Math.sqrt(shape[1] as number))];
    }),
  );
}

/** Invertible values for the parameters of every site, far from the identity. */
export function randomSites(model: Model, draw: Draw): Values {
  const { hidden, mlp, kvHeads, headDim: d } = model.shape;
  const pairs = [kvHeads, d / 2];
  const isNormed = model.sites.some(({ kind }) => kind === "qk-gains");
  const S = draw.normal([kvHeads, d, d], 1);
  for (let i = 0; i < S.data.length; i += d) {
    // Rows are divided so that a diagonal of either sign outweighs the rest, even with sf = 1.
    const row = S.data.subarray(i, i + d);
    const column = (i / d) % d;
    const rest = row.reduce((sum, x, j) => sum + (j === column ? 0 : Math.abs(x)), 0);
    const diagonal = (row[column] as number) < 0 ? -1.3 : 0.8;
    for (let j = 0; j < d; j++) row[j] = ((row[j] as number) * 0.7) / rest;
    row[column] = diagonal;
  }
  return {
    "updown.log_s": draw.normal([mlp], 0.7),
    "norm.norm1.log_s": draw.normal([hidden], 0.7),
    "norm.norm2.log_s": draw.normal([hidden], 0.7),
    "vo.S": draw.value(S.data, S.shape),
    ...(isNormed
      ? { "qk-gains.log_r": draw.normal([1, d / 2], 0.5) }
      : {
          "qk-pairs.log_r": draw.normal(pairs, 0.5),
          "qk-pairs.theta": draw.normal(pairs, 2),
        }),
  };
}

/** Owned tensors of values. */
export function tensorsOf(
  values: Values,
  dtype: FloatType,
  device = "cpu",
): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(values).map(([key, value]) => [key, toTensor(value, { device, dtype })]),
  );
}

/** Output of the block in full precision, for weights as they are or already on an eager graph. */
export function blockOutput(
  model: Model,
  weights: Readonly<Record<string, Tensor | Var>>,
  x: Tensor,
): Tensor {
  const graph = new Eager();
  const context = model.context(x.shape[1] as number, x.dtype === "f64" ? "f64" : "f32");
  const vars = Object.entries(weights).map(([key, w]) => [
    key,
    "value" in w ? w : graph.constant(w),
  ]);
  const w = Object.fromEntries(vars) as Record<string, Var>;
  const y = model.block(graph, context, w, graph.constant(x), passThrough).value.tensor;
  context.dispose();
  return y;
}

/** |a - b| / |a - c|: how far b is from a, measured by what the block adds to its input c. */
export function relativeChange(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  c: ArrayLike<number>,
): number {
  let changed = 0;
  let added = 0;
  for (let i = 0; i < a.length; i++) {
    changed += ((a[i] as number) - (b[i] as number)) ** 2;
    added += ((a[i] as number) - (c[i] as number)) ** 2;
  }
  return Math.sqrt(changed / added);
}
