/** What a checkpoint is, and what would be done to it, without reading its weights. */

import { describeSite, siteName } from "./affine/sites.ts";
import { openCheckpoint } from "./checkpoint/folder.ts";
import { readAqConfig } from "./export/aq-config.ts";
import { openModel } from "./models/registry.ts";
import type { InspectOptions, InspectResult } from "./types.ts";

/** Throws: AqError when the folder cannot be read or its model is not supported. */
export function inspect(options: InspectOptions): InspectResult {
  const checkpoint = openCheckpoint(options.model);
  try {
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    // Every weight that the model will need, so that a missing one shows now and not after hours.
    for (const { name } of model.outerTensors()) checkpoint.info(name);
    for (let i = 0; i < model.shape.blocks; i++) {
      for (const { name } of model.blockTensors(i)) checkpoint.info(name);
    }
    let parameters = 0;
    let bytes = 0;
    const dtypes = new Set<string>();
    for (const tensor of checkpoint.tensors.values()) {
      parameters += tensor.shape.reduce((product, d) => product * d, 1);
      bytes += tensor.bytes;
      dtypes.add(tensor.dtype);
    }
    const config = readAqConfig(options.model);
    const { hidden, blocks, heads, kvHeads, headDim, mlp, vocabulary, maxTokens } = model.shape;
    return {
      model: options.model,
      family: model.family,
      blocks,
      hidden,
      heads,
      kvHeads,
      headDim,
      mlp,
      vocabulary,
      maxTokens,
      ...model.traits,
      dtype: [...dtypes].join(", "),
      shards: checkpoint.shards.length,
      parameters,
      bytes,
      quantized: config && {
        wbits: config.scheme.wbits,
        abits: config.scheme.abits,
        groupSize: config.scheme.groupSize,
      },
      sites: model.sites.map((spec) => ({
        site: siteName(spec),
        ...describeSite(spec, model.shape),
      })),
    };
  } finally {
    checkpoint.close();
  }
}
