/**
 * The model of a folder that may be packed, with what its files add to the architecture: biases (exporters
 * of old wrote one of zeros for every linear) and matrices that are applied before linears.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import type { Model, ModelExtras } from "../models/family.ts";
import { openModel } from "../models/registry.ts";
import { type PackedWeights, packedWeights } from "./open.ts";
import { partName } from "./parts.ts";

/** Throws: AQ_MODEL for a model or a quantization that is not supported, AQ_FORMAT. */
export function openFolderModel(checkpoint: Checkpoint, extras: ModelExtras = {}): Model {
  const has = (name: string): boolean => checkpoint.has(name);
  const model = openModel(checkpoint.config, has, extras);
  const packed = packedWeights(checkpoint);
  if (!packed) return model;
  const residues = residueMatrices(checkpoint, model, packed);
  const found = [...strayBiases(checkpoint, model), ...residues.keys()];
  if (found.length === 0) return model;
  const added = [...(extras.added ?? []), ...found];
  const whole = openModel(checkpoint.config, has, { ...extras, added });
  for (let i = 0; i < whole.shape.blocks; i++) {
    for (const { key, name } of whole.blockTensors(i)) {
      const matrices = residues.get(key)?.[i];
      if (matrices) packed.residues.set(name, matrices);
    }
  }
  return whole;
}

/**
 * Names of the matrices before the linears behind each norm, by the residue's key and by block.
 *
 * Throws: AQ_MODEL where some linears behind a norm have one and others have none, or where a matrix lies
 * elsewhere.
 */
function residueMatrices(
  checkpoint: Checkpoint,
  model: Model,
  packed: PackedWeights,
): Map<string, string[][]> {
  const residues = new Map<string, string[][]>();
  if (packed.transformed.length === 0) return residues;
  let used = 0;
  for (let i = 0; i < model.shape.blocks; i++) {
    const weights = new Map(model.blockTensors(i).map(({ key, name }) => [key, name]));
    for (const { norm, consumers } of model.residual.reads) {
      const names = consumers.flatMap((key) => packed.matrix(weights.get(key) ?? "") ?? []);
      used += names.length;
      if (names.length === 0) continue;
      if (names.length < consumers.length) throw scattered(checkpoint);
      const key = `${norm}.residue`;
      residues.set(key, [...(residues.get(key) ?? []), names]);
    }
  }
  const isPartial = [...residues.values()].some((blocks) => blocks.length < model.shape.blocks);
  if (isPartial || used < packed.transformed.length) throw scattered(checkpoint);
  return residues;
}

function scattered(checkpoint: Checkpoint): AqError {
  return new AqError(
    "AQ_MODEL",
    `${checkpoint.dir}: its transform_config has matrices before some linears only, and this version applies them to all linears behind a norm, in all blocks`,
  );
}

/** Keys of biases that the blocks have beside what their model describes. */
function strayBiases(checkpoint: Checkpoint, model: Model): string[] {
  const { blocks } = model.shape;
  const counts = new Map<string, number>();
  for (let i = 0; i < blocks; i++) {
    const specs = model.blockTensors(i);
    const known = new Set(specs.map(({ name }) => name));
    for (const { key, name } of specs) {
      const bias = partName(name, "bias");
      const isLinear = model.linears.some((linear) => linear.key === key);
      if (!isLinear || known.has(bias) || !checkpoint.has(bias)) continue;
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
  }
  for (const [key, count] of counts) {
    if (count < blocks) {
      throw new AqError(
        "AQ_MODEL",
        `${checkpoint.dir}: ${count} of ${blocks} blocks have a bias for ${key}, which the architecture does not have; all blocks or none must have one`,
      );
    }
  }
  return [...counts.keys()].map((key) => `${key}.bias`);
}
