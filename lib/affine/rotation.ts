/**
 * Rotation of the residual stream: x -> x Q with Q orthogonal, folded into every weight that reads or
 * writes the stream. Norm gains move into the linears behind them first, so that the norms commute
 * with Q; the last norm's gain moves into the head, which so becomes a tensor of its own.
 *
 * In float64, when weights are read. Source: QuaRot (arXiv 2404.00456), SpinQuant (2405.16406); that
 * LayerNorm commutes with a Q that keeps the ones vector, and so needs no change of architecture: see
 * docs/method.md.
 */

import { AqError } from "../errors.ts";
import type { Model } from "../models/family.ts";
import type { LoadedWeights } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { createRandom } from "../util/random.ts";
import { onesKeepingOrthogonal, signedHadamard } from "./orthogonal.ts";

const F64 = dtypeCode("f64");
const F32 = dtypeCode("f32");

const double = (t: Tensor): Tensor => invokeOne("cast", [t], { dtype: F64 });
const single = (t: Tensor): Tensor => invokeOne("cast", [t], { dtype: F32 });

function product(a: Tensor, b: Tensor, trans: { a?: boolean; b?: boolean } = {}): Tensor {
  return invokeOne(
    "fake_quant_gemm",
    [a, b, undefined, undefined, undefined, undefined, undefined, undefined],
    {
      trans_a: trans.a ? 1 : 0,
      trans_b: trans.b ? 1 : 0,
      a_bits: 0,
      a_group: 0,
      b_bits: 0,
      b_group: 0,
      accumulate: 0,
      bf16: 0,
    },
  );
}

/** One model's rotation; dispose it after the run. */
export class Rotation {
  readonly #model: Model;
  readonly #seed: number;
  readonly #q: Tensor;

  /** Q depends on the seed alone. */
  constructor(model: Model, seed: number, device = "cpu") {
    this.#model = model;
    this.#seed = seed;
    const random = createRandom(seed);
    const n = model.shape.hidden;
    const q = model.residual.centred ? onesKeepingOrthogonal(n, random) : signedHadamard(n, random);
    this.#q = Tensor.from(q.data, [n, n], "f64", device);
  }

  dispose(): void {
    this.#q.dispose();
  }

  /**
   * The weights of block `index` in the rotated basis; the caller owns them. Gains become ones. The
   * values of each head are turned too, by a Hadamard matrix of their own between v and o.
   */
  block(weights: LoadedWeights, index: number): LoadedWeights {
    return scopeAll(() => {
      const { reads, writes } = this.#model.residual;
      const result: Record<string, Tensor> = {};
      for (const [key, w] of Object.entries(weights)) result[key] = double(w);
      for (const { norm, consumers } of reads) {
        const gain = result[norm] as Tensor;
        const beta = result[`${norm}.beta`];
        for (const key of consumers) {
          const w = result[key] as Tensor;
          if (beta) addBias(result, key, product(w, beta.reshape([1, beta.size]), { b: true }));
          result[key] = product(scaleColumns(w, gain), this.#q);
        }
        invoke("fill", [gain], { value: 1 });
        if (beta) invoke("fill", [beta], { value: 0 });
      }
      for (const key of writes) {
        result[key] = product(this.#q, result[key] as Tensor, { a: true });
        const bias = result[`${key}.bias`];
        if (bias) result[`${key}.bias`] = this.#rotateRow(bias);
      }
      this.#rotateHeads(result, index);
      return Object.fromEntries(Object.entries(result).map(([key, t]) => [key, single(t)]));
    });
  }

  /** Embeddings, last norm and head in the rotated basis, f32; `head` is then always there. */
  outer(weights: LoadedWeights): LoadedWeights {
    return scopeAll(() => {
      const result: Record<string, Tensor> = {};
      for (const [key, w] of Object.entries(weights)) result[key] = double(w);
      const gain = result["norm"] as Tensor;
      const head = result["head"] ?? (result["embedding"] as Tensor);
      result["head"] = product(scaleColumns(head, gain), this.#q);
      const beta = result["norm.beta"];
      if (beta) result["norm.beta"] = this.#rotateRow(divide(beta, gain));
      for (const key of this.#model.residual.embeddings) {
        result[key] = product(result[key] as Tensor, this.#q);
      }
      invoke("fill", [gain], { value: 1 });
      return Object.fromEntries(Object.entries(result).map(([key, t]) => [key, single(t)]));
    });
  }

  /** Wv <- H Wv, bv <- H bv, Wo <- Wo Ht for every head, H a Hadamard matrix with random signs. */
  #rotateHeads(weights: Record<string, Tensor>, index: number): void {
    const site = this.#model.sites.find((spec) => spec.kind === "vo");
    if (!site) return;
    const { heads, kvHeads, headDim: d } = this.#model.shape;
    const random = createRandom(this.#seed + 2 ** 32 * (index + 1));
    const all = new Float64Array(kvHeads * d * d);
    for (let h = 0; h < kvHeads; h++) all.set(signedHadamard(d, random).data, h * d * d);
    const m = Tensor.from(all, [kvHeads, d, d], "f64", this.#q.device);
    const rows = { side: 0, transpose: 0, heads: kvHeads };
    weights[site.v] = invokeOne("head_matmul", [weights[site.v], m], rows);
    const bias = weights[`${site.v}.bias`];
    if (bias) {
      const column = invokeOne("head_matmul", [bias.reshape([bias.size, 1]), m], rows);
      weights[`${site.v}.bias`] = column.reshape([bias.size]);
    }
    weights[site.o] = invokeOne("head_matmul", [weights[site.o], m], {
      side: 1,
      transpose: 1,
      heads,
    });
  }

  /** States x [..., C] in the rotated basis, x Q; and back, x Qt. Computed in float64, f32 outside. */
  states(x: Tensor): Tensor {
    return single(product(double(x), this.#q));
  }

  back(x: Tensor): Tensor {
    return single(product(double(x), this.#q, { b: true }));
  }

  #rotateRow(row: Tensor): Tensor {
    return product(row.reshape([1, row.size]), this.#q).reshape([row.size]);
  }
}

function scaleColumns(w: Tensor, columns: Tensor): Tensor {
  return invokeOne("scale_weight", [w, undefined, columns]);
}

function addBias(weights: Record<string, Tensor>, key: string, change: Tensor): void {
  const bias = weights[`${key}.bias`];
  if (!bias) {
    throw new AqError("AQ_MODEL", `rotating needs a bias on '${key}' to take the norm's bias up`);
  }
  invoke("axpy", [bias, change], { alpha: 1 });
}

/** beta / gain, elementwise; a gain of zero has no inverse. */
function divide(beta: Tensor, gain: Tensor): Tensor {
  const b = beta.read();
  const g = gain.read();
  if (g.some((value) => value === 0)) {
    throw new AqError(
      "AQ_MODEL",
      "the last norm has a gain of zero, so it cannot be rotated; use --rotate off",
    );
  }
  return Tensor.from(
    Float64Array.from(b, (value, i) => value / (g[i] as number)),
    beta.shape,
    "f64",
    beta.device,
  );
}

/** Like scope, for a record of tensors. */
function scopeAll(body: () => Record<string, Tensor>): LoadedWeights {
  let keys: string[] = [];
  const tensors = scope(() => {
    const record = body();
    keys = Object.keys(record);
    return Object.values(record);
  });
  return Object.fromEntries(keys.map((key, i) => [key, tensors[i] as Tensor]));
}
