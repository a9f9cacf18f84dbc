/** What the tensors outside the blocks must be: those of the run's output, and where those come from. */

import { Rotation } from "../affine/rotation.ts";
import { type Checkpoint, openCheckpoint } from "../checkpoint/folder.ts";
import { sourceFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { disposeAll, type LoadedWeights } from "../models/load.ts";
import { openModel } from "../models/registry.ts";
import { weightSource } from "../models/source.ts";
import { sha256File } from "../util/hash.ts";
import { isJsonObject, type JsonObject } from "../util/json.ts";
import type { OuterValues } from "./folder.ts";
import { numbersOf, readPlain, type SavedRun } from "./state.ts";

/** For what was exported: as the run's output has them. */
export function outerOfOutput(run: SavedRun): OuterValues {
  return (spec) => numbersOf(run.plain(spec));
}

/** Values of outer tensors that must be closed after use. */
export interface SourceOuter {
  readonly values: OuterValues;
  close(): void;
}

/**
 * For the output itself: as in the model that it was made of, turned into the run's basis where that was
 * rotated on the CPU; nothing where they cannot be had.
 */
export function outerOfSource(run: SavedRun): SourceOuter {
  const settings = objectOf(run.identity["settings"]);
  const { rotate, seed, device } = settings;
  const isRotated = rotate === true;
  const source = isRotated && device !== "cpu" ? null : openSource(run);
  if (!source) return { values: () => null, close: () => {} };
  const close = (): void => source.close();
  if (!isRotated) return { values: ({ name }) => numbersOf(readPlain(source, name)), close };
  let turned: LoadedWeights;
  try {
    turned = rotatedOuter(source, typeof seed === "number" ? seed : 0);
  } catch (error) {
    close();
    throw error;
  }
  return {
    values: ({ key }) => turned[key]?.floats() ?? null,
    close: () => {
      disposeAll(turned);
      close();
    },
  };
}

/** The model that was quantized; its folder may be gone, or hold another one by now. */
function openSource(run: SavedRun): Checkpoint | null {
  let source: Checkpoint;
  try {
    source = openCheckpoint(run.source);
  } catch (error) {
    if (error instanceof AqError) return null;
    throw error;
  }
  const hashes = objectOf(objectOf(run.identity["model"])["weights"]);
  const outer = run.model.outerTensors().map(({ name }) => source.tensors.get(name)?.file);
  const files = new Set(outer.filter((file) => file !== undefined));
  if ([...files].every((file) => sha256File(sourceFile(source.dir, file)) === hashes[file])) {
    return source;
  }
  source.close();
  return null;
}

function objectOf(value: unknown): JsonObject {
  return isJsonObject(value) ? value : {};
}

function rotatedOuter(source: Checkpoint, seed: number): LoadedWeights {
  const model = openModel(source.config, (name) => source.has(name));
  const rotation = new Rotation(model, seed);
  try {
    return weightSource(source, model, rotation).loadOuter();
  } finally {
    rotation.dispose();
  }
}
