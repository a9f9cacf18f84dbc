/**
 * Where a run takes its weights from: the checkpoint as it is, or in a rotated basis, and with the
 * inverse of what the model transforms at run time.
 */

import type { Rotation } from "../affine/rotation.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { ReadAhead } from "../checkpoint/read-ahead.ts";
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
  /** Where the weights are loaded to, and everything that is computed with them. */
  readonly device: string;
  loadBlock(i: number): LoadedWeights;
  /**
   * Begins to read a block that will be wanted next, where a GPU gives the time for it: its weights are
   * then held in memory once more, in their stored dtype.
   */
  readAhead(i: number): void;
  /** Waits for what is being read ahead. */
  arrived(): Promise<void>;
  /** Ends the reading; to be awaited before the checkpoint is closed. */
  stopReading(): Promise<void>;
  loadOuter(): LoadedWeights;
  /** The dtype in which the weight of a block is stored. */
  storedDType(block: number, key: string): DType;
}

export function weightSource(
  checkpoint: Checkpoint,
  model: Model,
  rotation: Rotation | null = null,
  device = "cpu",
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
  const ahead = new ReadAhead(checkpoint);
  return {
    checkpoint,
    model,
    rotation,
    device,
    loadBlock(i) {
      const read = loadBlock(checkpoint, model, i, device, ahead);
      const weights = rotation ? rotated(read, (w) => rotation.block(w, i)) : read;
      const { hadamardDown } = model;
      return hadamardDown ? foldHadamard(weights, model.linears, hadamardDown) : weights;
    },
    readAhead(i) {
      if (device !== "cpu") ahead.begin(model.blockTensors(i).map(({ name }) => name));
    },
    arrived: () => ahead.arrived(),
    stopReading: () => ahead.stop(),
    loadOuter() {
      const weights = loadOuter(checkpoint, model, device);
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
