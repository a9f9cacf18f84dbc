// Cases of the pairs of lib/autograd/ops: small graphs that end in a loss, checked by differences. Those
// that quantize are in graph-quantized.ts.
import type { Graph, Var } from "../../lib/autograd/graph.ts";
import { add } from "../../lib/autograd/ops/add.ts";
import { attention } from "../../lib/autograd/ops/attention.ts";
import { exp } from "../../lib/autograd/ops/exp.ts";
import { gradualMask } from "../../lib/autograd/ops/gradual-mask.ts";
import { hadamard } from "../../lib/autograd/ops/hadamard.ts";
import { headMatmul } from "../../lib/autograd/ops/head-matmul.ts";
import { klDiv } from "../../lib/autograd/ops/kl-div.ts";
import { layerNorm } from "../../lib/autograd/ops/layer-norm.ts";
import { linear } from "../../lib/autograd/ops/linear.ts";
import { inverse, residueOf } from "../../lib/autograd/ops/lu-inverse.ts";
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
import { throughInverse } from "../../lib/autograd/ops/through-inverse.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import type { Value } from "../helpers/value.ts";
import { at, constant, draw, type GraphCase } from "./graph-case.ts";
import { FLOAT4 } from "./graph-float4.ts";
import { QUANTIZED } from "./graph-quantized.ts";

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
  smooth(
    ["through-inverse", "lu-inverse"],
    "activations through the inverse of a matrix that also meets a weight",
    [draw.normal([2, 5, 4]), nearIdentity(1, 4), draw.normal([3, 4])],
    [2, 5, 3],
    (graph, vars) => {
      const matrix = at(vars, 1);
      const weight = headMatmul(graph, at(vars, 2), matrix, {
        side: "columns",
        transpose: false,
        heads: 1,
      });
      return linear(graph, throughInverse(graph, at(vars, 0), residueOf(graph, matrix)), weight);
    },
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

/** Every graph case. */
export const GRAPH_CASES: readonly GraphCase[] = [...SMOOTH, ...QUANTIZED, ...FLOAT4];
