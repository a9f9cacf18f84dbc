import { invoke } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import {
  type Graph,
  type Grid,
  materialize,
  type OpPair,
  tensorOf,
  type Value,
  type Var,
} from "../graph.ts";
import {
  QuantizableVar,
  type RowCodes,
  rowCodes,
  waitsForQuantizer,
  wanted,
} from "../quantizable.ts";

/** Heads of causal self-attention. */
export interface AttentionParams {
  readonly heads: number;
  readonly kvHeads: number;
  /** Factor of the logits, usually 1/sqrt(D). */
  readonly scale: number;
}

/** What the op is given beside them. */
interface Kept extends AttentionParams {
  /** Whether the forward pass is to leave what it made of q, k and v for the gradient. */
  readonly keep: boolean;
}

const pair: OpPair<Kept> = {
  name: "attention",
  forward: (x, p) =>
    withHeadGrids(x, p, (values) => {
      const params = { ...native(values, p), keep: p.keep ? 1 : 0 };
      const [tensor, ...saved] = invoke("attention", operands(values), params);
      return { tensor: tensor as Tensor, saved };
    }),
  backward: ({ g, inputs, output, saved, params }) =>
    withHeadGrids(inputs, params, (values) =>
      invoke(
        "attention_grad",
        [...operands(values), output.tensor, saved[0], g, keptOf(saved[1])],
        native(values, params),
      ),
    ),
};

/** With the quantizer of its rows behind it. */
interface AttentionCodes extends Kept {
  readonly codes: RowCodes;
}

const quantized: OpPair<AttentionCodes> = {
  name: "attention_operand",
  forward: (inputs, p) =>
    withHeadGrids(inputs.slice(0, 3), p, (values) => {
      const given = [...operands(values), inputs[3]?.tensor];
      const params = { ...nativeCodes(values, p), keep: p.keep ? 1 : 0 };
      const made = invoke("attention_operand", given, params);
      return { ...rowCodes(made.slice(3), p.codes.bits), saved: made.slice(0, 3) };
    }),
  backward: ({ g, inputs, output, saved, params, needs }) =>
    withHeadGrids(inputs.slice(0, 3), params, (values) => {
      const { scale, zero } = output.grid as Grid;
      const [o, lse, kept] = saved;
      const behind = [inputs[3]?.tensor, o, lse, scale, zero, g, keptOf(kept)];
      const given = [...operands(values), ...behind];
      return wanted(invoke("attention_operand_grad", given, nativeCodes(values, params)), needs);
    }),
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

/** A backend that keeps nothing gives an empty tensor. */
function keptOf(kept: Tensor | undefined): Tensor | undefined {
  return kept && kept.size > 0 ? kept : undefined;
}

function operands(x: readonly Value[]): (Tensor | undefined)[] {
  return [...x.map(({ tensor }) => tensor), ...x.flatMap(({ grid }) => [grid?.scale, grid?.zero])];
}

function native(x: readonly Value[], p: AttentionParams): Record<string, number> {
  const bits = x.find(({ grid }) => grid)?.grid?.bits ?? 0;
  return { heads: p.heads, kv_heads: p.kvHeads, scale: p.scale, bits };
}

function nativeCodes(x: readonly Value[], p: AttentionCodes): Record<string, number> {
  return { ...native(x, p), row_bits: p.codes.bits, floor: p.codes.floor };
}

/**
 * Causal softmax(scale q kT) v with q [B, T, H*D], k and v [B, T, Hkv*D]; each may be lazily
 * fake-quantized. Grids per token and head are applied on load; a value on another grid, such as one
 * scale for all heads, is quantized first. No T x T matrix is kept, forward or backward. A
 * quantizer of whole rows behind it may become part of it.
 */
export function attention(graph: Graph, q: Var, k: Var, v: Var, params: AttentionParams): Var {
  const keep = waitsForQuantizer(graph, q);
  const make = (): Var => graph.apply(pair, [q, k, v], { ...params, keep });
  if (!keep) return make();
  return new QuantizableVar([q, k, v], make, (clip, codes) =>
    graph.apply(quantized, [q, k, v, clip], { ...params, keep, codes }),
  );
}
