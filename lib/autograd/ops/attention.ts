import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Value, type Var } from "../graph.ts";

/** Heads of causal self-attention. */
export interface AttentionParams {
  readonly heads: number;
  readonly kvHeads: number;
  /** Factor of the logits, usually 1/sqrt(D). */
  readonly scale: number;
}

const pair: OpPair<AttentionParams> = {
  name: "attention",
  forward: (x, p) => {
    const [tensor, lse] = invoke("attention", operands(x), native(x, p)) as [Tensor, Tensor];
    return { tensor, saved: [lse] };
  },
  backward: ({ g, inputs, output, saved, params }) =>
    invoke(
      "attention_grad",
      [...operands(inputs), output.tensor, saved[0], g],
      native(inputs, params),
    ),
};

function operands(x: readonly (Value | undefined)[]): (Tensor | undefined)[] {
  const values = [0, 1, 2].map((i) => tensorOf(x, i));
  return [...values, ...x.flatMap((value) => [value?.grid?.scale, value?.grid?.zero])];
}

function native(x: readonly (Value | undefined)[], p: AttentionParams): Record<string, number> {
  const bits = x.find((value) => value?.grid)?.grid?.bits ?? 0;
  return { heads: p.heads, kv_heads: p.kvHeads, scale: p.scale, bits };
}

/**
 * Causal softmax(scale q kT) v with q [B, T, H*D], k and v [B, T, Hkv*D]; each may be lazily
 * fake-quantized per token and head. No T x T matrix is kept, forward or backward.
 */
export function attention(graph: Graph, q: Var, k: Var, v: Var, params: AttentionParams): Var {
  return graph.apply(pair, [q, k, v], params);
}
