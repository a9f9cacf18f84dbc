// Cases of the pairs of lib/autograd/ops: small graphs that end in a loss. Smooth ones are checked by
// differences; those that quantize state their gradient by the written rule.
import type { Graph, Var } from "../../lib/autograd/graph.ts";
import { add } from "../../lib/autograd/ops/add.ts";
import { attention } from "../../lib/autograd/ops/attention.ts";
import { exp } from "../../lib/autograd/ops/exp.ts";
import { type FakeQuantParams, fakeQuant } from "../../lib/autograd/ops/fake-quant.ts";
import { gradualMask } from "../../lib/autograd/ops/gradual-mask.ts";
import { hadamard } from "../../lib/autograd/ops/hadamard.ts";
import { headMatmul } from "../../lib/autograd/ops/head-matmul.ts";
import { klDiv } from "../../lib/autograd/ops/kl-div.ts";
import { layerNorm } from "../../lib/autograd/ops/layer-norm.ts";
import { linear } from "../../lib/autograd/ops/linear.ts";
import { inverse } from "../../lib/autograd/ops/lu-inverse.ts";
import { mse } from "../../lib/autograd/ops/mse.ts";
import { mul } from "../../lib/autograd/ops/mul.ts";
import { reciprocal } from "../../lib/autograd/ops/reciprocal.ts";
import { relu } from "../../lib/autograd/ops/relu.ts";
import { reshape } from "../../lib/autograd/ops/reshape.ts";
import { rmsNorm } from "../../lib/autograd/ops/rms-norm.ts";
import { rope } from "../../lib/autograd/ops/rope.ts";
import { rotatePairs } from "../../lib/autograd/ops/rotate-pairs.ts";
import { scaleWeight } from "../../lib/autograd/ops/scale-weight.ts";
import { siluMul } from "../../lib/autograd/ops/silu-mul.ts";
import { sub } from "../../lib/autograd/ops/sub.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { Draw } from "../helpers/random.ts";
import type { Value } from "../helpers/value.ts";
import { attention as attentionReference } from "../reference/block.ts";
import { differences } from "../reference/finite-differences.ts";
import { matmul } from "../reference/linalg.ts";
import { fakeQuant as fakeQuantReference, quantGrid } from "../reference/quantize.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";

export interface GraphCase {
  /** Files of lib/autograd/ops that it exercises, without ".ts". */
  readonly pairs: readonly string[];
  readonly title: string;
  readonly inputs: readonly Value[];
  loss(graph: Graph, inputs: readonly Var[]): Var;
  /** Gradient of every input where differences mean nothing. */
  readonly rule?: () => readonly Float64Array[];
}

const draw = new Draw(5, "f64");

function constant(graph: Graph, value: Value): Var {
  return graph.constant(Tensor.from(value.data, value.shape));
}

/** A case whose result is held against random numbers. */
function smooth(
  pairs: readonly string[],
  title: string,
  inputs: readonly Value[],
  output: readonly number[],
  apply: (graph: Graph, inputs: readonly Var[]) => Var,
): GraphCase {
  const target = draw.normal(output);
  const loss = (graph: Graph, vars: readonly Var[]) =>
    mse(graph, apply(graph, vars), constant(graph, target));
  return { pairs: [...pairs, "mse"], title, inputs, loss };
}

function at(vars: readonly Var[], i: number): Var {
  const value = vars[i];
  if (!value) throw new Error(`the case has no input ${i}`);
  return value;
}

/** Matrices near the identity, so that their inverse is tame. */
function nearIdentity(B: number, D: number): Value {
  const { data, shape } = draw.normal([B, D, D], 0.1);
  return { data: data.map((x, i) => x + (Math.floor(i / D) % D === i % D ? 1 : 0)), shape };
}

const table = (T: number, half: number, f: (angle: number) => number): Value =>
  draw.value(
    Float64Array.from({ length: T * half }, (_, i) => f(Math.floor(i / half) / (1 + (i % half)))),
    [T, half],
  );

/** The divergence of a student from a teacher, which is a loss itself. */
function divergence(): GraphCase {
  const teacher = draw.normal([3, 9], 2);
  return {
    pairs: ["kl-div"],
    title: "the divergence from a teacher's logits",
    inputs: [draw.normal([3, 9], 2)],
    loss: (graph, vars) => klDiv(graph, at(vars, 0), constant(graph, teacher)),
  };
}

const SMOOTH: readonly GraphCase[] = [
  smooth(["add"], "a sum", [draw.normal([3, 5]), draw.normal([3, 5])], [3, 5], (g, x) =>
    add(g, at(x, 0), at(x, 1)),
  ),
  smooth(["add"], "a value added to itself", [draw.normal([7])], [7], (g, x) =>
    add(g, at(x, 0), at(x, 0)),
  ),
  smooth(["sub"], "a difference", [draw.normal([3, 5]), draw.normal([3, 5])], [3, 5], (g, x) =>
    sub(g, at(x, 0), at(x, 1)),
  ),
  smooth(
    ["sub", "mul"],
    "a difference of values that have gradients already",
    [draw.normal([5]), draw.normal([5])],
    [5],
    (g, x) => mul(g, sub(g, at(x, 0), at(x, 1)), sub(g, at(x, 1), mul(g, at(x, 0), at(x, 1)))),
  ),
  smooth(["sub", "mul"], "a value taken from itself", [draw.normal([4])], [4], (g, x) =>
    sub(g, mul(g, at(x, 0), at(x, 0)), sub(g, at(x, 0), at(x, 0))),
  ),
  smooth(["mul"], "a product", [draw.normal([3, 5]), draw.normal([3, 5])], [3, 5], (g, x) =>
    mul(g, at(x, 0), at(x, 1)),
  ),
  smooth(["mul"], "a square", [draw.normal([6])], [6], (g, x) => mul(g, at(x, 0), at(x, 0))),
  smooth(["exp"], "a reciprocal exponential", [draw.normal([9])], [9], (g, x) =>
    exp(g, at(x, 0), -1),
  ),
  smooth(["reciprocal"], "a reciprocal", [draw.uniform([9], 0.3, 2)], [9], (g, x) =>
    reciprocal(g, at(x, 0)),
  ),
  smooth(
    ["reshape", "add", "sub"],
    "a value seen under two shapes",
    [draw.normal([6]), draw.normal([2, 3])],
    [2, 3],
    (g, x) => {
      const seen = reshape(g, at(x, 0), [2, 3]);
      return add(g, sub(g, at(x, 1), seen), add(g, seen, reshape(g, at(x, 0), [2, 3])));
    },
  ),
  smooth(
    ["scale-weight"],
    "rows and columns of a weight",
    [draw.normal([4, 5]), draw.normal([4]), draw.normal([5])],
    [4, 5],
    (g, x) => scaleWeight(g, at(x, 0), { rows: at(x, 1), columns: at(x, 2) }),
  ),
  smooth(
    ["scale-weight"],
    "columns alone",
    [draw.normal([3, 4]), draw.normal([4])],
    [3, 4],
    (g, x) => scaleWeight(g, at(x, 0), { columns: at(x, 1) }),
  ),
  ...([0, 1] as const).flatMap((transposed) =>
    (["rows", "columns"] as const).map((side) => {
      const shape = side === "rows" ? [12, 5] : [5, 12];
      const inputs = [draw.normal(shape), draw.normal([2, 3, 3])];
      const title = `${side} by ${transposed ? "transposed " : ""}matrices of grouped heads`;
      const params = { side, transpose: transposed === 1, heads: 4 };
      return smooth(["head-matmul"], title, inputs, shape, (g, x) =>
        headMatmul(g, at(x, 0), at(x, 1), params),
      );
    }),
  ),
  smooth(["gradual-mask"], "a band of three", [draw.normal([2, 5, 5])], [2, 5, 5], (g, x) =>
    gradualMask(g, at(x, 0), { band: 1, sf: 0.1 }),
  ),
  smooth(["lu-inverse"], "inverses of a batch", [nearIdentity(2, 5)], [2, 5, 5], (g, x) =>
    inverse(g, at(x, 0)),
  ),
  ...([1, -1] as const).map((signR) =>
    smooth(
      ["rotate-pairs"],
      `turned pairs of grouped heads, r to the power ${signR}`,
      [draw.normal([16, 3]), draw.normal([2, 2], 0.3), draw.normal([2, 2])],
      [16, 3],
      (g, x) => rotatePairs(g, at(x, 0), at(x, 1), at(x, 2), { heads: 4, signR }),
    ),
  ),
  smooth(
    ["rms-norm"],
    "a norm and its gain",
    [draw.normal([3, 7]), draw.normal([7])],
    [3, 7],
    (g, x) => rmsNorm(g, at(x, 0), at(x, 1), 1e-5),
  ),
  smooth(
    ["rms-norm"],
    "a norm with a bias",
    [draw.normal([3, 7]), draw.normal([7]), draw.normal([7])],
    [3, 7],
    (g, x) => rmsNorm(g, at(x, 0), at(x, 1), 1e-5, at(x, 2)),
  ),
  smooth(
    ["layer-norm"],
    "a centred norm, its gain and its bias",
    [draw.normal([3, 7], 1, 2), draw.normal([7]), draw.normal([7])],
    [3, 7],
    (g, x) => layerNorm(g, at(x, 0), at(x, 1), at(x, 2), 1e-5),
  ),
  ...([false, true] as const).map((inverse) => {
    const tensor = ({ data, shape }: Value) => Tensor.from(data, shape);
    const signs = draw.value([1, -1, -1, 1, -1, 1, 1, 1, -1, 1, -1, -1], [12]);
    const odd = draw.normal([3, 3]);
    return smooth(
      ["hadamard"],
      `${inverse ? "an inverse" : "a"} Hadamard transform of two runs in a row`,
      [draw.normal([2, 24])],
      [2, 24],
      (g, x) => hadamard(g, at(x, 0), { signs: tensor(signs), odd: tensor(odd) }, inverse),
    );
  }),
  divergence(),
  smooth(["relu"], "a rectifier", [draw.normal([5, 6])], [5, 6], (g, x) => relu(g, at(x, 0))),
  smooth(["rope"], "positions of two sequences", [draw.normal([2, 3, 8])], [2, 3, 8], (g, x) =>
    rope(g, at(x, 0), constant(g, table(3, 2, Math.cos)), constant(g, table(3, 2, Math.sin)), 2),
  ),
  smooth(
    ["silu-mul"],
    "a gated product",
    [draw.normal([3, 4]), draw.normal([3, 4])],
    [3, 4],
    (g, x) => siluMul(g, at(x, 0), at(x, 1)),
  ),
  smooth(
    ["linear"],
    "a linear with a bias on three dimensions",
    [draw.normal([2, 3, 5]), draw.normal([4, 5]), draw.normal([4])],
    [2, 3, 4],
    (g, x) => linear(g, at(x, 0), at(x, 1), at(x, 2)),
  ),
  smooth(
    ["linear", "add"],
    "an input shared by two linears and a residual",
    [draw.normal([3, 4]), draw.normal([4, 4]), draw.normal([4, 4])],
    [3, 4],
    (g, x) => {
      const sum = add(g, linear(g, at(x, 0), at(x, 1)), linear(g, at(x, 0), at(x, 2)));
      return add(g, at(x, 0), sum);
    },
  ),
  smooth(
    ["attention"],
    "grouped heads",
    [draw.normal([2, 4, 12]), draw.normal([2, 4, 6]), draw.normal([2, 4, 6])],
    [2, 4, 12],
    (g, x) => attention(g, at(x, 0), at(x, 1), at(x, 2), { heads: 4, kvHeads: 2, scale: 0.6 }),
  ),
];

/** A quantized operand: its values on the grid, and how a gradient passes through them. */
function onGrid(
  x: Value,
  clip: Value,
  sizes: { M: number; K: number },
  params: FakeQuantParams,
  offset?: Value,
) {
  const options = { ...sizes, ...params, roundF16: false };
  const grid = quantGrid(x.data, clip.data, options);
  return {
    used: fakeQuantReference(x.data, grid, params.bits, options, offset?.data),
    pass: (g: Float64Array) => fakeQuantGradient(x.data, clip.data, g, options, offset?.data),
  };
}

/** Gradient of the mean squared error. */
function errorGradient(y: Float64Array, target: Value): Float64Array {
  return y.map((value, i) => (2 * (value - (target.data[i] ?? 0))) / y.length);
}

/** With `rounding`, the weight's rounding is learned too. */
function quantizedLinear(rounding: boolean): GraphCase {
  const [M, N, K] = [6, 5, 9];
  const token: FakeQuantParams = { bits: 4, group: 0, symmetric: false, floor: 1e-6 };
  const weight: FakeQuantParams = { bits: 3, group: 4, symmetric: false, floor: 2 ** -14 };
  const [x, w] = [draw.normal([M, K]), draw.normal([N, K])];
  const [xClip, wClip] = [draw.normal([1], 0.1, 2), draw.normal([2, N, 3], 0.5, 2)];
  const offset = rounding ? draw.uniform([N, K], -0.5, 0.5) : undefined;
  const target = draw.normal([M, N]);
  return {
    pairs: ["fake-quant", "linear", "mse"],
    title: `a linear of quantized tokens and ${rounding ? "learnedly rounded " : ""}weights`,
    inputs: [x, xClip, w, wClip, ...(offset ? [offset] : [])],
    loss: (graph, vars) => {
      const tokens = fakeQuant(graph, at(vars, 0), at(vars, 1), token);
      const weights = fakeQuant(graph, at(vars, 2), at(vars, 3), weight, vars[4]);
      return mse(graph, linear(graph, tokens, weights), constant(graph, target));
    },
    rule: () => {
      const tokens = onGrid(x, xClip, { M, K }, token);
      const weights = onGrid(w, wClip, { M: N, K }, weight, offset);
      const product = (
        a: Float64Array,
        b: Float64Array,
        [rows, cols, inner]: readonly [number, number, number],
        transA: boolean,
        transB: boolean,
      ) => {
        const sizes = { B: 1, M: rows, N: cols, K: inner };
        return matmul(a, b, sizes, { alpha: 1, transA, transB });
      };
      const y = product(tokens.used, weights.used, [M, N, K], false, true);
      const g = errorGradient(y, target);
      const gx = tokens.pass(product(g, weights.used, [M, K, N], false, false));
      const gw = weights.pass(product(g, tokens.used, [N, K, M], true, false));
      return [gx.gx, gx.gclip, gw.gx, gw.gclip, ...(offset ? [gw.gv] : [])];
    },
  };
}

/** With grids per token and head, or with one for all heads of a token. */
function quantizedAttention(together: boolean): GraphCase {
  const [T, heads, kvHeads, D] = [5, 4, 2, 3];
  const group = together ? 0 : D;
  const params: FakeQuantParams = { bits: 4, group, symmetric: false, floor: 1e-6 };
  const counts = [heads, kvHeads, kvHeads];
  const values = counts.map((count) => draw.normal([1, T, count * D]));
  const clips = counts.map(() => draw.normal([1], 0.2, 2));
  const target = draw.normal([1, T, heads * D]);
  const sizes = { B: 1, T, heads, kvHeads, D, scale: 0.7 };
  return {
    pairs: ["fake-quant", "attention", "mse"],
    title: `attention on heads quantized ${together ? "together" : "one by one"}`,
    inputs: [...values, ...clips],
    loss: (graph, vars) => {
      const [q, k, v] = [0, 1, 2].map((i) =>
        fakeQuant(graph, at(vars, i), at(vars, 3 + i), params),
      ) as [Var, Var, Var];
      return mse(graph, attention(graph, q, k, v, sizes), constant(graph, target));
    },
    rule: () => {
      const grids = values.map((x, i) =>
        onGrid(x, clips[i] as Value, { M: T, K: (counts[i] ?? 0) * D }, params),
      );
      const used = grids.map((grid) => grid.used);
      const forward = ([q, k, v]: readonly Float64Array[]) => [
        attentionReference(q as Float64Array, k as Float64Array, v as Float64Array, sizes).o,
      ];
      const g = errorGradient(forward(used)[0] as Float64Array, target);
      const passed = grids.map((grid, i) => grid.pass(differences(forward, used, i, [g])));
      return [...passed.map(({ gx }) => gx), ...passed.map(({ gclip }) => gclip)];
    },
  };
}

/** Every graph case. */
export const GRAPH_CASES: readonly GraphCase[] = [
  ...SMOOTH,
  quantizedLinear(false),
  quantizedLinear(true),
  quantizedAttention(false),
  quantizedAttention(true),
];
