/** A block whose weights are on a device, ready to be run: as numbers, or as packed codes. */

import type { Graph, Var } from "../autograd/graph.ts";
import type { ReadAhead } from "../checkpoint/read-ahead.ts";
import { disposeAll, type LoadedWeights, loadTensors } from "../models/load.ts";
import { PackedBlock } from "../packed/block.ts";
import { packedWeights } from "../packed/open.ts";
import { type ActivationHook, passThrough, TokenQuantizers } from "../quant/tokens.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { EvalModel } from "./eval-model.ts";

export class ResidentBlock {
  readonly #source: EvalModel;
  readonly #weights: LoadedWeights;
  readonly #packed: PackedBlock | undefined;
  /** Clipping logits of its activations. */
  readonly #clips: LoadedWeights;

  /** Reads block i. Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL, AQ_NUMERIC, AQ_OOM. */
  constructor(source: EvalModel, i: number, ahead?: ReadAhead) {
    const { checkpoint, model, activations, device = "cpu" } = source;
    this.#source = source;
    const specs = model.blockTensors(i);
    const codes = packedWeights(checkpoint);
    this.#packed = codes ? new PackedBlock(codes, specs, device) : undefined;
    try {
      const numbers = specs.filter(({ key }) => !this.#packed?.weights.has(key));
      const linears = new Set(model.linears.map(({ key }) => key));
      this.#weights = inProductType(loadTensors(checkpoint, numbers, device, ahead), linears);
    } catch (error) {
      this.#packed?.dispose();
      throw error;
    }
    this.#clips = Object.fromEntries(
      Object.entries(activations?.clips[i] ?? {}).map(([name, logit]) => [
        name,
        Tensor.from(Float32Array.of(logit), [1], "f32", device),
      ]),
    );
  }

  /** Its weights as constants of a graph. */
  weights(graph: Graph): Record<string, Var> {
    const vars: Record<string, Var> = {};
    for (const [key, tensor] of Object.entries(this.#weights)) vars[key] = graph.constant(tensor);
    for (const [key, { tensor, ...packed }] of this.#packed?.weights ?? []) {
      vars[key] = { value: { tensor, packed }, needsGrad: false };
    }
    return vars;
  }

  /** What is done with its activations. */
  hook(graph: Graph): ActivationHook {
    const { activations } = this.#source;
    if (!activations) return passThrough;
    if (activations.hook) return activations.hook;
    const clips = new Map(
      Object.entries(this.#clips).map(([name, logit]) => [name, graph.constant(logit)]),
    );
    return new TokenQuantizers(activations.bits, clips, activations.style);
  }

  dispose(): void {
    disposeAll(this.#weights);
    disposeAll(this.#clips);
    this.#packed?.dispose();
  }
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
