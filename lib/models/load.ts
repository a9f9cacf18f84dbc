/**
 * Brings weights of a checkpoint onto a device as f32, checked. Weights that are stored packed come as
 * what their codes stand for.
 */

import * as path from "node:path";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { ReadAhead } from "../checkpoint/read-ahead.ts";
import { engineDType } from "../checkpoint/safetensors-header.ts";
import { AqError } from "../errors.ts";
import { dequantize } from "../packed/linear.ts";
import { packedWeights } from "../packed/open.ts";
import { readResidue } from "../packed/transforms.ts";
import { type DType, dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Model, TensorSpec } from "./family.ts";

/** Bytes that are read, and held, at a time. */
const CHUNK_BYTES = 16 * 2 ** 20;

/** Elements that are looked at, and held as f32, at a time. */
const CHUNK_ELEMENTS = 2 ** 20;

/** A tensor and the file it lies in, for messages. */
function located(checkpoint: Checkpoint, name: string): string {
  return `"${name}" in ${path.join(checkpoint.dir, checkpoint.info(name).file)}`;
}

/** The dtype of a checkpoint tensor. Throws: AQ_MODEL if it is no floating type of at least 16 bits. */
export function weightDType(checkpoint: Checkpoint, name: string): DType {
  const { dtype } = checkpoint.info(name);
  const engine = engineDType(dtype);
  if (engine !== "f32" && engine !== "f16" && engine !== "bf16" && engine !== "f64") {
    throw new AqError(
      "AQ_MODEL",
      `${located(checkpoint, name)} is ${dtype}; weights must be F32, F16 or BF16`,
    );
  }
  return engine;
}

/** The dtype of a tensor that must be there as the model describes it. Throws: AQ_MODEL. */
function checkWeight(checkpoint: Checkpoint, spec: TensorSpec): DType {
  const info = checkpoint.info(spec.name);
  if (info.shape.length !== spec.shape.length || info.shape.some((d, i) => d !== spec.shape[i])) {
    throw new AqError(
      "AQ_MODEL",
      `${located(checkpoint, spec.name)} is [${info.shape.join(", ")}], but its config.json implies [${spec.shape.join(", ")}]`,
    );
  }
  return weightDType(checkpoint, spec.name);
}

/**
 * Every weight that the model will need is there, in a shape and dtype that it can use, so that a wrong
 * one shows now and not after hours. Throws: AQ_MODEL.
 */
export function checkWeights(checkpoint: Checkpoint, model: Model): void {
  const packed = packedWeights(checkpoint);
  const check = (spec: TensorSpec): void => {
    if (packed?.residues.has(spec.name)) return;
    if (packed?.has(spec.name)) packed.check(spec);
    else checkWeight(checkpoint, spec);
  };
  for (const spec of model.outerTensors()) check(spec);
  for (let i = 0; i < model.shape.blocks; i++) {
    for (const spec of model.blockTensors(i)) check(spec);
  }
}

/**
 * Reads a tensor in its stored dtype, or takes it from what was read ahead. Throws: AQ_MODEL for a
 * wrong shape or dtype, AQ_FILE.
 */
export function loadStored(
  checkpoint: Checkpoint,
  spec: TensorSpec,
  device = "cpu",
  ahead?: ReadAhead,
): Tensor {
  const dtype = checkWeight(checkpoint, spec);
  const info = checkpoint.info(spec.name);
  const tensor = Tensor.empty(spec.shape, dtype, device);
  const whole = ahead?.take(spec.name);
  if (whole) {
    tensor.write(whole);
    return tensor;
  }
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, info.bytes));
  for (let at = 0; at < info.bytes; at += chunk.length) {
    const part = chunk.subarray(0, Math.min(chunk.length, info.bytes - at));
    checkpoint.readInto(spec.name, part, at, part.length);
    tensor.write(part, at);
  }
  return tensor;
}

/** Reads a tensor as f32 and refuses NaN and infinity. Throws: AQ_MODEL, AQ_FILE, AQ_NUMERIC. */
export function loadWeight(
  checkpoint: Checkpoint,
  spec: TensorSpec,
  device = "cpu",
  ahead?: ReadAhead,
): Tensor {
  return scope(() => {
    const packed = packedWeights(checkpoint);
    // Scales are finite: who read them has looked.
    if (packed?.has(spec.name)) return dequantize(packed.read(spec), device);
    const residue = packed?.residues.get(spec.name);
    if (residue) {
      const [n] = spec.shape as [number];
      return Tensor.from(readResidue(checkpoint, residue, n), spec.shape, "f32", device);
    }
    const stored = loadStored(checkpoint, spec, device, ahead);
    const tensor =
      stored.dtype === "f32" ? stored : invokeOne("cast", [stored], { dtype: dtypeCode("f32") });
    if (invokeOne("all_finite", [tensor]).item() !== 1) throw notFinite(checkpoint, spec);
    return tensor;
  });
}

/**
 * Reads a tensor in its stored dtype and refuses NaN and infinity, without a whole copy as f32: an
 * embedding may be the largest tensor of a model. Throws: AQ_MODEL, AQ_FILE, AQ_NUMERIC.
 */
export function loadStoredFinite(checkpoint: Checkpoint, spec: TensorSpec, device = "cpu"): Tensor {
  return scope(() => {
    const stored = loadStored(checkpoint, spec, device);
    for (let at = 0; at < stored.size; at += CHUNK_ELEMENTS) {
      const finite = scope(() => {
        const part = stored.view(at, [Math.min(CHUNK_ELEMENTS, stored.size - at)]);
        const floats = invokeOne("cast", [part], { dtype: dtypeCode("f32") });
        return invokeOne("all_finite", [floats]).item() === 1;
      });
      if (!finite) throw notFinite(checkpoint, spec);
    }
    return stored;
  });
}

function notFinite(checkpoint: Checkpoint, spec: TensorSpec): AqError {
  return new AqError(
    "AQ_NUMERIC",
    `${located(checkpoint, spec.name)} holds NaN or infinity; the checkpoint is damaged`,
  );
}

/** Owned f32 tensors by key. */
export type LoadedWeights = Readonly<Record<string, Tensor>>;

/** The weights of block i. */
export function loadBlock(
  checkpoint: Checkpoint,
  model: Model,
  i: number,
  device = "cpu",
  ahead?: ReadAhead,
): LoadedWeights {
  return loadTensors(checkpoint, model.blockTensors(i), device, ahead);
}

/** Some tensors, as f32. */
export function loadTensors(
  checkpoint: Checkpoint,
  specs: readonly TensorSpec[],
  device = "cpu",
  ahead?: ReadAhead,
): LoadedWeights {
  return loadAll(specs, (spec) => loadWeight(checkpoint, spec, device, ahead));
}

/** The weights outside the blocks; the embedding keeps its stored dtype unless it is also the head. */
export function loadOuter(checkpoint: Checkpoint, model: Model, device = "cpu"): LoadedWeights {
  return loadAll(model.outerTensors(), (spec) =>
    spec.key === "embedding" && !model.traits.tiedHead
      ? loadStoredFinite(checkpoint, spec, device)
      : loadWeight(checkpoint, spec, device),
  );
}

function loadAll(specs: readonly TensorSpec[], load: (spec: TensorSpec) => Tensor): LoadedWeights {
  const weights: Record<string, Tensor> = {};
  try {
    for (const spec of specs) weights[spec.key] = load(spec);
    return weights;
  } catch (error) {
    disposeAll(weights);
    throw error;
  }
}

export function disposeAll(weights: LoadedWeights): void {
  for (const tensor of Object.values(weights)) tensor.dispose();
}
