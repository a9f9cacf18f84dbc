/** A block whose weights are on a device, ready to be run: as numbers, or as packed codes. */

import type { Graph, Var } from "../autograd/graph.ts";
import type { ReadAhead } from "../checkpoint/read-ahead.ts";
import { joinable, joinedKey } from "../models/joined.ts";
import { keptActivations } from "../models/kept.ts";
import { disposeAll, type LoadedWeights, loadTensors } from "../models/load.ts";
import { PackedBlock } from "../packed/block.ts";
import { packedWeights } from "../packed/open.ts";
import { type ActivationHook, passThrough } from "../quant/activations.ts";
import { allBut, tokenQuantizers } from "../quant/tokens.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { EvalModel } from "./eval-model.ts";

export class ResidentBlock {
  readonly #source: EvalModel;
  readonly #weights: LoadedWeights;
  readonly #packed: PackedBlock | undefined;
  /** Clipping logits of its activations, and global scales. */
  readonly #clips: LoadedWeights;
  readonly #globals: LoadedWeights;
  /** Activations that are not quantized. */
  readonly #plain: ReadonlySet<string>;

  /**
   * Reads block i; `join`: linears that read the same input become one (lib/models/joined.ts).
   *
   * Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL, AQ_NUMERIC, AQ_OOM.
   */
  constructor(source: EvalModel, i: number, ahead?: ReadAhead, join = false) {
    const { checkpoint, model, activations, device = "cpu" } = source;
    this.#source = source;
    const specs = model.blockTensors(i);
    const codes = packedWeights(checkpoint);
    const groups = join ? joinable(model.linears) : [];
    this.#packed = codes ? new PackedBlock(codes, specs, device, groups) : undefined;
    try {
      const numbers = specs.filter(({ key }) => !this.#packed?.holds.has(key));
      const linears = new Set(model.linears.map(({ key }) => key));
      const loaded = inProductType(loadTensors(checkpoint, numbers, device, ahead), linears);
      this.#weights = groups.reduce((all, keys) => this.#joinNumbers(all, keys), loaded);
    } catch (error) {
      this.#packed?.dispose();
      throw error;
    }
    const oneEach = (numbers: Readonly<Record<string, number>> = {}): LoadedWeights =>
      Object.fromEntries(
        Object.entries(numbers).map(([name, value]) => [
          name,
          Tensor.from(Float32Array.of(value), [1], "f32", device),
        ]),
      );
    this.#clips = oneEach(activations?.clips[i]);
    this.#globals = oneEach(activations?.globals?.[i]);
    this.#plain = keptActivations(model, new Set(activations?.kept?.[i]));
  }

  /** Joins the weights of these linears, if they are here, and the biases of those that are joined. */
  #joinNumbers(weights: LoadedWeights, keys: readonly string[]): LoadedWeights {
    const isPacked = this.#packed?.weights.has(joinedKey(keys)) ?? false;
    if (!isPacked && keys.some((key) => !weights[key])) return weights;
    const joined = isPacked ? weights : joinRows(weights, keys, joinedKey(keys));
    const biases = keys.map((key) => `${key}.bias`);
    if (!biases.some((key) => joined[key])) return joined;
    const { model, device = "cpu" } = this.#source;
    const all: Record<string, Tensor> = { ...joined };
    for (const key of keys) {
      const rows = model.linears.find((linear) => linear.key === key)?.out ?? 0;
      all[`${key}.bias`] ??= Tensor.from(new Float32Array(rows), [rows], "f32", device);
    }
    return joinRows(all, biases, `${joinedKey(keys)}.bias`);
  }

  /** Its weights as constants of a graph. */
  weights(graph: Graph): Record<string, Var> {
    const vars: Record<string, Var> = {};
    for (const [key, tensor] of Object.entries(this.#weights)) vars[key] = graph.constant(tensor);
    for (const [key, packed] of this.#packed?.weights ?? []) {
      vars[key] = { value: { tensor: packed.tensor, packed }, needsGrad: false };
    }
    return vars;
  }

  /** What is done with its activations. */
  hook(graph: Graph): ActivationHook {
    const { activations } = this.#source;
    if (!activations) return passThrough;
    if (activations.hook) return allBut(this.#plain, activations.hook);
    const constants = (tensors: LoadedWeights): Map<string, Var> =>
      new Map(Object.entries(tensors).map(([name, tensor]) => [name, graph.constant(tensor)]));
    const unsaid = { wbits: 16, groupSize: 0, symmetric: false };
    return tokenQuantizers(
      { ...unsaid, ...activations.style, abits: activations.bits },
      { clips: constants(this.#clips), globals: constants(this.#globals), plain: this.#plain },
    );
  }

  dispose(): void {
    disposeAll(this.#weights);
    disposeAll(this.#clips);
    disposeAll(this.#globals);
    this.#packed?.dispose();
  }
}

/** Tensors of these keys as one that has the rows of all; takes the given ones over. */
function joinRows(weights: LoadedWeights, keys: readonly string[], name: string): LoadedWeights {
  const parts = keys.map((key) => weights[key] as Tensor);
  const { dtype, device, shape } = parts[0] as Tensor;
  const rows = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
  const all = Tensor.empty([rows, ...shape.slice(1)], dtype, device);
  let at = 0;
  for (const part of parts) {
    const to = all.view(at, part.shape);
    invokeOne("cast", [part], { dtype: dtypeCode(dtype) }, to).dispose();
    to.dispose();
    at += part.size;
    part.dispose();
  }
  const others = Object.entries(weights).filter(([key]) => !keys.includes(key));
  return { ...Object.fromEntries(others), [name]: all };
}

/**
 * The same weights, the named ones in the type that their device multiplies in: each product would round
 * them to it. Takes the given ones over.
 */
export function inProductType(weights: LoadedWeights, names: ReadonlySet<string>): LoadedWeights {
  const own: Record<string, Tensor> = { ...weights };
  try {
    for (const [key, w] of Object.entries(weights)) {
      const precision = precisionOf(w.device);
      if (!names.has(key) || precision === "f32" || w.dtype !== "f32") continue;
      own[key] = invokeOne("cast", [w], { dtype: dtypeCode(precision) });
      w.dispose();
    }
    return own;
  } catch (error) {
    disposeAll(own);
    throw error;
  }
}
