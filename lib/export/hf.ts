/**
 * The Hugging Face folder: the source's tensors with the blocks' weights replaced by the values that
 * their codes stand for, in the source's dtypes. Stock loaders read it unchanged.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import type { OutputFolder } from "../checkpoint/output-folder.ts";
import type { Model } from "../models/family.ts";
import { weightDType } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { AQ_CONFIG_NAME, type AqConfig, aqConfigJson } from "./aq-config.ts";
import type { RunState, StoredBlock } from "./run-state.ts";

/** Writes the folder from the run's stored blocks. Throws: AQ_FILE, AQ_STOPPED. */
export async function writeHuggingFace(
  folder: OutputFolder,
  source: Checkpoint,
  model: Model,
  run: RunState,
  config: AqConfig,
  version: string,
  signal?: AbortSignal,
): Promise<void> {
  const blockOf = new Map<string, number>();
  for (let i = 0; i < model.shape.blocks; i++) {
    for (const { name } of model.blockTensors(i)) blockOf.set(name, i);
  }
  // One block is open at a time: sources keep a block's tensors together.
  let open: { index: number; block: StoredBlock } | undefined;
  const stored = (index: number): StoredBlock => {
    if (open?.index !== index) {
      open?.block.close();
      open = { index, block: run.openBlock(index) };
    }
    return open.block;
  };
  try {
    await folder.assemble({
      source,
      config: source.config,
      tensorBytes: (tensor) => {
        const index = blockOf.get(tensor.name);
        if (index === undefined) return undefined;
        return scope(() => {
          const weight = stored(index).weight(tensor.name, config.scheme.groupSize);
          const cast = invokeOne("cast", [weight], {
            dtype: dtypeCode(weightDType(source, tensor.name)),
          });
          const data = cast.read();
          return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
        });
      },
      extraJson: { [AQ_CONFIG_NAME]: aqConfigJson(config, version) },
      ...(signal ? { signal } : {}),
    });
  } finally {
    open?.block.close();
  }
}
