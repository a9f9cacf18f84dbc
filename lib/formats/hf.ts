/** The run's own output once more: the dequantized weights in the model's dtypes, from the codes. */

import { OutputFolder } from "../checkpoint/output-folder.ts";
import { writeHuggingFace } from "../export/hf.ts";
import { weightSource } from "../models/source.ts";
import { quantizesTokens } from "../quant/scheme.ts";
import { packageVersion } from "../util/package.ts";
import { type Format, UNCHANGED } from "./format.ts";
import type { Setting } from "./setting.ts";

function notes({ model, added, scheme }: Setting): string[] {
  if (model.hadamardDown || added.length > 0) {
    return ["the model computes what its architecture does not, so that stock loaders refuse it"];
  }
  if (!quantizesTokens(scheme)) return [];
  return [`stock loaders leave the ${scheme.abits}-bit activations out; aq-native eval does not`];
}

export const hf: Format = {
  name: "hf",
  about: "the model's own layout, dequantized: transformers, vLLM, anything",
  refuses: () => undefined,
  notes,
  async write(run, { dir, signal }) {
    const folder = OutputFolder.claim(dir, { source: run.dir });
    // Everything that the run added or rotated is in its output already: that is the source here.
    const source = weightSource(run.checkpoint, run.model);
    const openBlock = (block: number) => run.openBlock(block);
    const version = packageVersion();
    await writeHuggingFace(folder, source, run.model, openBlock, run.config, version, signal);
    return { change: UNCHANGED, otherChange: null, notes: notes(run.setting) };
  },
};
