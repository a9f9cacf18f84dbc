/** Perplexity of a folder on a text. */

import { windowLength } from "./calibration/settings.ts";
import { openCheckpoint } from "./checkpoint/folder.ts";
import { readTextFile } from "./data/text.ts";
import { loadTokenizer } from "./data/tokenizer.ts";
import { sequentialWindows } from "./data/windows.ts";
import { AqError } from "./errors.ts";
import { folderActivations } from "./eval/folder-activations.ts";
import { perplexity } from "./eval/perplexity.ts";
import { extrasOf, readAqConfig } from "./export/aq-config.ts";
import { checkOwnType } from "./export/own-type.ts";
import { checkWeights } from "./models/load.ts";
import { openFolderModel } from "./packed/model.ts";
import { packedWeights } from "./packed/open.ts";
import { type ComputeDevice, checkChoice, openDevice } from "./tensor/compute-device.ts";
import { setThreads } from "./tensor/device.ts";
import type { EvaluateEvent, EvaluateOptions, EvaluateResult, RunHooks } from "./types.ts";

/**
 * Tokenizes the text whole, without special tokens, cuts it into windows of `seqlen` (the remainder
 * is dropped) and measures. A folder that aq-native wrote is measured with its activation quantizers
 * unless `abits` is 16; one of packed weights as its description has it run, whoever wrote it.
 *
 * Throws: AqError for bad options or input, AQ_STOPPED when the signal fires.
 */
export async function evaluate(
  options: EvaluateOptions,
  hooks: RunHooks<EvaluateEvent> = {},
): Promise<EvaluateResult> {
  if (options.threads !== undefined) setThreads(options.threads);
  const { abits, windows: limit = Number.MAX_SAFE_INTEGER } = options;
  if (
    abits !== undefined &&
    abits !== 16 &&
    !(Number.isInteger(abits) && abits >= 2 && abits <= 8)
  ) {
    throw new AqError("AQ_ARG", `abits must be from 2 to 8, or 16 for none, got ${abits}`);
  }
  if (!Number.isInteger(limit) || limit < 1) {
    throw new AqError("AQ_ARG", `windows must be a whole number of at least 1, got ${limit}`);
  }
  checkChoice(options);
  const checkpoint = openCheckpoint(options.model);
  let device: ComputeDevice | undefined;
  try {
    const packed = packedWeights(checkpoint);
    const config = readAqConfig(options.model);
    checkOwnType(options.model, checkpoint.config, config);
    const model = openFolderModel(checkpoint, extrasOf(config));
    checkWeights(checkpoint, model);
    const seqlen = windowLength(options.seqlen, model);
    const ids = loadTokenizer(options.model).encode(readTextFile(options.text));
    const windows = sequentialWindows(
      ids,
      seqlen,
      Math.min(limit, Math.max(1, Math.floor(ids.length / seqlen))),
    );
    const activations = folderActivations(model, config, packed, abits);
    device = openDevice(options);
    const source = { checkpoint, model, activations, device: device.name };
    return await perplexity(source, windows, {
      onWindow: (window, total, ppl) =>
        hooks.onEvent?.({ event: "window", window, windows: total, ppl }),
      signal: hooks.signal,
    });
  } finally {
    device?.release();
    checkpoint.close();
  }
}
