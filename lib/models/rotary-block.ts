/**
 * The block of LLaMA and kin, as training and evaluation run it, and as a decoder does whose weights are
 * joined. Norms of q and k stand between their linears and the rotation, so that these two are then never
 * joined; the block applies whichever of the two is among its weights.
 */

import type { Graph, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { attention } from "../autograd/ops/attention.ts";
import { reshape } from "../autograd/ops/reshape.ts";
import { rmsNorm } from "../autograd/ops/rms-norm.ts";
import { rope } from "../autograd/ops/rope.ts";
import { siluMul } from "../autograd/ops/silu-mul.ts";
import { type ActivationHook, passThrough } from "../quant/activations.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { withResidue } from "./added.ts";
import type { AttendJoined, BlockContext, Weights } from "./family.ts";
import { transformDown } from "./hadamard-down.ts";
import { addProject, joinedKey, normFor, project, roundingFor, siluMulJoined } from "./joined.ts";
import type { RotaryConfig } from "./rotary-config.ts";

/** Keys of weights that are joined. */
const QKV = joinedKey(["q", "k", "v"]);
const GATE_UP = joinedKey(["gate", "up"]);

/** Keys of the gains of q's and k's norms [D]. */
export const HEAD_NORMS = { q: "q_norm", k: "k_norm" } as const;

type Sizes = Pick<RotaryConfig, "heads" | "kvHeads" | "headDim" | "rmsEps">;

/** x [B, T, C] -> [B, T, C]. */
export function rotaryBlock(
  sizes: Sizes,
  graph: Graph,
  context: BlockContext,
  w: Weights,
  x: Var,
  activations: ActivationHook,
): Var {
  if (context.attendJoined) return joinedBlock(sizes, graph, context, w, x);
  const norm = (input: Var, key: string): Var => {
    const normed = rmsNorm(graph, input, w[key] as Var, sizes.rmsEps, w[`${key}.beta`]);
    return activations.apply(graph, key, withResidue(graph, normed, w, key), 0);
  };

  const o = attend(sizes, graph, context, w, norm(x, "norm1"), activations);
  const middle = add(graph, x, project(graph, activations.apply(graph, "o", o, 0), w, "o"));

  const h = norm(middle, "norm2");
  const gated = siluMul(graph, project(graph, h, w, "gate"), project(graph, h, w, "up"));
  const m = activations.apply(graph, "down", transformDown(graph, context, gated), 0);
  return add(graph, middle, project(graph, m, w, "down"));
}

/** Attention of a norm's output h [B, T, C], up to what o reads [B, T, H*D]. */
function attend(
  { heads, kvHeads, headDim, rmsEps }: Sizes,
  graph: Graph,
  context: BlockContext,
  w: Weights,
  h: Var,
  activations: ActivationHook,
): Var {
  const cos = graph.constant(context.tensors["cos"] as Tensor);
  const sin = graph.constant(context.tensors["sin"] as Tensor);
  const turned = (key: "q" | "k", count: number): Var => {
    const x = normHeads(graph, project(graph, h, w, key), w[HEAD_NORMS[key]], headDim, rmsEps);
    return activations.apply(graph, key, rope(graph, x, cos, sin, count), headDim);
  };
  return (context.attend ?? attention)(
    graph,
    turned("q", heads),
    turned("k", kvHeads),
    activations.apply(graph, "v", project(graph, h, w, "v"), headDim),
    { heads, kvHeads, scale: 1 / Math.sqrt(headDim) },
  );
}

/** RMSNorm of each head's D features, where there is a gain [D]. x [B, T, heads*D] keeps its shape. */
function normHeads(graph: Graph, x: Var, gain: Var | undefined, headDim: number, eps: number): Var {
  if (!gain) return x;
  const { shape } = x.value.tensor;
  const width = shape.at(-1) as number;
  const apart = reshape(graph, x, [...shape.slice(0, -1), width / headDim, headDim]);
  return reshape(graph, rmsNorm(graph, apart, gain, eps), shape);
}

/** The same for weights of which some are joined, in few kernels; activations are not quantized. */
function joinedBlock(sizes: Sizes, graph: Graph, context: BlockContext, w: Weights, x: Var): Var {
  const { heads, kvHeads, headDim, rmsEps: eps } = sizes;
  const norm = (input: Var, key: string, joined: string): Var => {
    const gain = { w: w[key] as Var, b: w[`${key}.beta`], eps, centred: false };
    const round = w[joined] && !w[`${key}.residue`] ? roundingFor(w[joined]) : 0;
    return withResidue(graph, normFor(graph, input, gain, round), w, key);
  };
  const roundFor = (key: string): number => roundingFor(w[key] as Var);

  const h1 = norm(x, "norm1", QKV);
  const { cos, sin } = context.tensors as { readonly cos: Tensor; readonly sin: Tensor };
  const o = w[QKV]
    ? (context.attendJoined as AttendJoined)(graph, project(graph, h1, w, QKV), {
        heads,
        kvHeads,
        scale: 1 / Math.sqrt(headDim),
        turn: { cos, sin },
        round: roundFor("o"),
      })
    : attend(sizes, graph, context, w, h1, passThrough);
  const middle = addProject(graph, x, o, w, "o");

  const h2 = norm(middle, "norm2", GATE_UP);
  const gated = w[GATE_UP]
    ? siluMulJoined(
        graph,
        project(graph, h2, w, GATE_UP),
        context.hadamardDown ? 0 : roundFor("down"),
      )
    : siluMul(graph, project(graph, h2, w, "gate"), project(graph, h2, w, "up"));
  return addProject(graph, middle, transformDown(graph, context, gated), w, "down");
}
