/**
 * The Hugging Face folder: the source's tensors with the blocks' weights replaced by the values that
 * their codes stand for, in the source's dtypes. Stock loaders read it unchanged.
 *
 * A rotated run replaces embeddings, last norm and head as well; a head that was tied to the embedding
 * is then a tensor of its own, and config.json says so. A model that computes something at run time
 * gets a model_type of our own, so that stock loaders refuse it; tensors that its architecture lacks
 * lie behind the others.
 */

import type { OutputFolder } from "../checkpoint/output-folder.ts";
import type { TensorSpec as FileTensor } from "../checkpoint/safetensors-header.ts";
import type { Model } from "../models/family.ts";
import { disposeAll, weightDType } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { JsonObject } from "../util/json.ts";
import { AQ_CONFIG_NAME, type AqConfig, aqConfigJson } from "./aq-config.ts";
import { ownConfig } from "./own-type.ts";
import type { StoredBlock } from "./stored-block.ts";

/**
 * Writes the folder from stored blocks, which `openBlock` opens; `written` is the model with all their
 * tensors. Throws: AQ_FILE, AQ_STOPPED.
 */
export async function writeHuggingFace(
  folder: OutputFolder,
  source: WeightSource,
  written: Model,
  openBlock: (block: number) => StoredBlock,
  config: AqConfig,
  version: string,
  signal?: AbortSignal,
): Promise<void> {
  const { checkpoint, model } = source;
  const blockOf = new Map<string, number>();
  const extra: FileTensor[] = [];
  for (let i = 0; i < model.shape.blocks; i++) {
    for (const { name, shape } of written.blockTensors(i)) {
      blockOf.set(name, i);
      if (checkpoint.has(name)) continue;
      extra.push({ name, shape, dtype: checkpoint.info(likeName(model, i)).dtype });
    }
  }
  const outer = outerNames(source);
  const untied = source.rotation !== null && model.traits.tiedHead;
  // The rotated outer weights, while the shards are written.
  const rotated = source.rotation ? source.loadOuter() : {};
  // One block is open at a time: sources keep a block's tensors together.
  let open: { index: number; block: StoredBlock } | undefined;
  const stored = (index: number): StoredBlock => {
    if (open?.index !== index) {
      open?.block.close();
      open = { index, block: openBlock(index) };
    }
    return open.block;
  };
  try {
    await folder.assemble({
      source: checkpoint,
      config: outputConfig(source, untied, extra.length > 0),
      tensorBytes: ({ name }) => {
        const index = blockOf.get(name);
        if (index !== undefined) {
          const like = checkpoint.has(name) ? name : likeName(model, index);
          return scope(() =>
            bytesOf(stored(index).weight(name, config.scheme.groupSize), source, like),
          );
        }
        const own = rotated[outer.keys.get(name) ?? ""];
        const like = checkpoint.has(name) ? name : outer.embedding;
        return own && scope(() => bytesOf(own, source, like));
      },
      extraTensors: untied ? [...extra, headTensor(source, outer.embedding)] : extra,
      extraJson: { [AQ_CONFIG_NAME]: aqConfigJson(config, version) },
      ...(signal ? { signal } : {}),
    });
  } finally {
    open?.block.close();
    disposeAll(rotated);
  }
}

/** The source's config.json, with what differs in the output. */
function outputConfig(
  { checkpoint, model }: WeightSource,
  untied: boolean,
  extended: boolean,
): JsonObject {
  const config = untied ? { ...checkpoint.config, tie_word_embeddings: false } : checkpoint.config;
  return model.hadamardDown || extended ? ownConfig(config) : config;
}

/** The tensor of a block in whose dtype those are stored that its architecture lacks. */
function likeName(model: Model, block: number): string {
  const [first] = model.blockTensors(block);
  if (!first) throw new TypeError(`block ${block} has no weights`);
  return first.name;
}

/** Keys of the outer tensors by name in the checkpoint, the head's included where it is tied. */
function outerNames({ model }: WeightSource): { keys: Map<string, string>; embedding: string } {
  const specs = model.outerTensors();
  const keys = new Map(specs.map(({ key, name }) => [name, key]));
  keys.set(model.headName(), "head");
  const embedding = specs.find(({ key }) => key === "embedding");
  if (!embedding) throw new TypeError("a model has an embedding");
  return { keys, embedding: embedding.name };
}

function headTensor({ checkpoint, model }: WeightSource, embedding: string): FileTensor {
  const { dtype, shape } = checkpoint.info(embedding);
  return { name: model.headName(), dtype, shape };
}

/** The tensor in the stored dtype of the checkpoint's tensor `like`. */
function bytesOf(tensor: Tensor, { checkpoint }: WeightSource, like: string): Uint8Array {
  const cast = invokeOne("cast", [tensor], { dtype: dtypeCode(weightDType(checkpoint, like)) });
  const data = cast.read();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}
