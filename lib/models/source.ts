/**
 * Where a run takes its weights from: the checkpoint as it is, or in a rotated basis, and with the
 * inverse of what the model transforms at run time.
 */

import type { Rotation } from "../affine/rotation.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { DType } from "../tensor/dtype.ts";
import type { Model } from "./family.ts";
import { foldHadamard } from "./hadamard-down.ts";
import { disposeAll, type LoadedWeights, loadBlock, loadOuter, weightDType } from "./load.ts";

/** The caller owns what is loaded. */
export interface WeightSource {
  readonly checkpoint: Checkpoint;
  readonly model: Model;
  /** Not null: embeddings, head and blocks come in this basis. */
  readonly rotation: Rotation | null;
  loadBlock(i: number): LoadedWeights;
  loadOuter(): LoadedWeights;
  /** The dtype in which the weight of a block is stored. */
  storedDType(block: number, key: string): DType;
}

export function weightSource(
  checkpoint: Checkpoint,
  model: Model,
  rotation: Rotation | null = null,
): WeightSource {
  const rotated = (
    weights: LoadedWeights,
    turn: (w: LoadedWeights) => LoadedWeights,
  ): LoadedWeights => {
    try {
      return turn(weights);
    } finally {
      disposeAll(weights);
    }
  };
  return {
    checkpoint,
    model,
    rotation,
    loadBlock(i) {
      const read = loadBlock(checkpoint, model, i);
      const weights = rotation ? rotated(read, (w) => rotation.block(w, i)) : read;
      const { hadamardDown } = model;
      return hadamardDown ? foldHadamard(weights, model.linears, hadamardDown) : weights;
    },
    loadOuter() {
      const weights = loadOuter(checkpoint, model);
      return rotation ? rotated(weights, (w) => rotation.outer(w)) : weights;
    },
    storedDType(block, key) {
      const specs = model.blockTensors(block);
      // A tensor that the architecture lacks is stored like the first that it has.
      const spec = specs.find((tensor) => tensor.key === key) ?? specs[0];
      if (!spec) throw new TypeError(`block ${block} has no weights`);
      return weightDType(checkpoint, spec.name);
    },
  };
}
