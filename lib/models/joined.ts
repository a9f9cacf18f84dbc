/**
 * Linears that read the same input as one product, and a block's steps around them as few kernels: how a
 * decoder on a GPU runs a block whose activations are not quantized. A step of one token takes the device
 * little longer than to read the weights, so that every kernel beside the products counts.
 */

import type { Graph, Value, Var } from "../autograd/graph.ts";
import { add } from "../autograd/ops/add.ts";
import { linear } from "../autograd/ops/linear.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { LinearSpec, Weights } from "./family.ts";

/** Keys of linears that read the same activation, several each, in the order in which they run. */
export function joinable(linears: readonly LinearSpec[]): readonly (readonly string[])[] {
  const groups = new Map<string, string[]>();
  for (const { key, activation, alone } of linears) {
    if (alone) continue;
    groups.set(activation, [...(groups.get(activation) ?? []), key]);
  }
  return [...groups.values()].filter((keys) => keys.length > 1);
}

/** The key of a weight whose rows are those of all these, one behind the other; its bias likewise. */
export function joinedKey(keys: readonly string[]): string {
  return keys.join("+");
}

/**
 * What a linear's input may be rounded to by whoever makes it, since its product would do so: the code of a
 * type, or 0.
 */
export function roundingFor({ value: { tensor, packed } }: Var): number {
  if (packed && ("kind" in packed || packed.bits !== 4)) return 0;
  const dtype: DType = packed ? precisionOf(tensor.device) : tensor.dtype;
  return dtype === "f16" || dtype === "bf16" ? dtypeCode(dtype) : 0;
}

/** A norm of x for a linear that rounds its input so. */
export function normFor(
  graph: Graph,
  x: Var,
  { w, b, eps, centred }: { w: Var; b: Var | undefined; eps: number; centred: boolean },
  round: number,
): Var {
  const params = { eps, centred: centred ? 1 : 0, round };
  const inputs = [x, w, b].map((value) => value?.value.tensor);
  return graph.constant(invokeOne("norm_rounded", inputs, params));
}

/** silu(gate) up of a product that has both in each row. */
export function siluMulJoined(graph: Graph, x: Var, round: number): Var {
  return graph.constant(invokeOne("silu_mul_joined", [x.value.tensor], { round }));
}

/** The linear of `key`, its bias included. */
export function project(graph: Graph, x: Var, w: Weights, key: string): Var {
  return linear(graph, x, w[key] as Var, w[`${key}.bias`]);
}

/** stream + linear. What is added to the product of a single token is the bias of that. */
export function addProject(graph: Graph, stream: Var, x: Var, w: Weights, key: string): Var {
  const { tensor }: Value = stream.value;
  const channels = tensor.shape.at(-1) as number;
  if (tensor.size !== channels || w[`${key}.bias`]) {
    return add(graph, stream, project(graph, x, w, key));
  }
  const bias: Tensor = tensor.reshape([channels]);
  return linear(graph, x, w[key] as Var, graph.constant(bias));
}
