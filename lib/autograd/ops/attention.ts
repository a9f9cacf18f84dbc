import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, materialize, type OpPair, tensorOf, type Value, type Var } from "../graph.ts";

/** Heads of causal self-attention. */
export interface AttentionParams {
  readonly heads: number;
  readonly kvHeads: number;
  /** Factor of the logits, usually 1/sqrt(D). */
  readonly scale: number;
}

const pair: OpPair<AttentionParams> = {
  name: "attention",
  forward: (x, p) =>
    withHeadGrids(x, p, (values) => {
      const [tensor, lse] = invoke("attention", operands(values), native(values, p)) as [
        Tensor,
        Tensor,
      ];
      return { tensor, saved: [lse] };
    }),
  backward: ({ g, inputs, output, saved, params }) =>
    withHeadGrids(inputs, params, (values) =>
      invoke(
        "attention_grad",
        [...operands(values), output.tensor, saved[0], g],
        native(values, params),
      ),
    ),
};

/** Runs `body` with grids that are per token and head; a value on any other grid comes quantized. */
function withHeadGrids<T>(
  x: readonly (Value | undefined)[],
  { heads }: AttentionParams,
  body: (values: readonly Value[]) => T,
): T {
  const size = (tensorOf(x, 0).shape.at(-1) as number) / heads;
  const made: Tensor[] = [];
  const values = x.map((value, i): Value => {
    const tensor = tensorOf(x, i);
    if (!value?.grid || value.grid.scale.size * size === tensor.size) return value ?? { tensor };
    made.push(materialize(value));
    return { tensor: made.at(-1) as Tensor };
  });
  try {
    return body(values);
  } finally {
    for (const tensor of made) tensor.dispose();
  }
}

function operands(x: readonly Value[]): (Tensor | undefined)[] {
  return [...x.map(({ tensor }) => tensor), ...x.flatMap(({ grid }) => [grid?.scale, grid?.zero])];
}

function native(x: readonly Value[], p: AttentionParams): Record<string, number> {
  const bits = x.find(({ grid }) => grid)?.grid?.bits ?? 0;
  return { heads: p.heads, kv_heads: p.kvHeads, scale: p.scale, bits };
}

/**
 * Causal softmax(scale q kT) v with q [B, T, H*D], k and v [B, T, Hkv*D]; each may be lazily
 * fake-quantized. Grids per token and head are applied on load; a value on another grid, such as one
 * scale for all heads, is quantized first. No T x T matrix is kept, forward or backward.
 */
export function attention(graph: Graph, q: Var, k: Var, v: Var, params: AttentionParams): Var {
  return graph.apply(pair, [q, k, v], params);
}
