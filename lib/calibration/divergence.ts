/** How far a quantized model is from full precision: KL divergence of its logits on some windows. */

import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import { embedWindow, logitsOf } from "../eval/perplexity.ts";
import type { FinishedWeights, TokenNumbers } from "../export/weights.ts";
import type { BlockContext } from "../models/family.ts";
import { disposeAll, type LoadedWeights } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { storedWeights } from "./finish-block.ts";
import { keptKeys } from "./keep.ts";
import { disposeTokens, forward, tokenConstants, tokenTensors } from "./passes.ts";
import { activationHook } from "./problem.ts";
import type { RunSettings } from "./settings.ts";
import type { Teacher } from "./teacher.ts";

/** What is compared, on which windows. */
export interface Comparison {
  readonly source: WeightSource;
  readonly context: BlockContext;
  /** Embeddings, last norm and head as they are written. */
  readonly outer: LoadedWeights;
  readonly teacher: Teacher;
  readonly windows: readonly Int32Array[];
  /** Windows to compare on. */
  readonly on: readonly number[];
  readonly settings: Pick<RunSettings, "scheme" | "keep">;
  readonly signal: AbortSignal | undefined;
}

/** A block as it would be written. */
export type WrittenBlock = FinishedWeights & TokenNumbers;

/**
 * Mean over the windows' tokens, of the model that a reader of the written checkpoint would see. Blocks
 * are asked for one by one, and disposed.
 *
 * Throws: AQ_STOPPED.
 */
export async function divergence(
  comparison: Comparison,
  block: (i: number) => WrittenBlock,
  dispose: (block: WrittenBlock) => void,
): Promise<number> {
  const { source, outer, teacher, windows, on, signal } = comparison;
  const states = on.map((n) => embedWindow(source.model, outer, windows[n] as Int32Array));
  try {
    for (let i = 0; i < source.model.shape.blocks; i++) {
      const written = block(i);
      try {
        passBlock(comparison, i, written, states);
      } finally {
        dispose(written);
      }
      await setImmediate();
      if (signal?.aborted) throw new AqError("AQ_STOPPED", "stopped while polishing");
    }
    const each = scope(() => {
      const all = Tensor.empty([on.length], "f32", source.device);
      for (const [at, n] of on.entries()) {
        scope(() => {
          const logits = logitsOf(source.model, outer, states[at] as Tensor);
          invokeOne("kl_div", [logits, teacher.logits(n)], {}, all.view(at, [1]));
        });
      }
      return all;
    });
    try {
      let sum = 0;
      for (const value of await each.readAsync()) sum += value;
      return sum / on.length;
    } finally {
      each.dispose();
    }
  } finally {
    for (const state of states) state.dispose();
  }
}

/** Replaces every state by the block's output. */
function passBlock(
  { source, context, settings }: Comparison,
  i: number,
  written: WrittenBlock,
  states: Tensor[],
): void {
  const dtype = (key: string) => source.storedDType(i, key);
  const { model } = source;
  const { scheme } = settings;
  const weights = storedWeights(written, scheme.groupSize, dtype);
  const tensors = tokenTensors(written, source.device);
  const problem = { model, scheme, kept: keptKeys(model, i, settings) };
  try {
    for (const [at, state] of states.entries()) {
      states[at] = scope(() =>
        forward(model, context, weights, state, (graph) =>
          activationHook(problem, tokenConstants(graph, tensors)),
        ),
      );
      state.dispose();
    }
  } finally {
    disposeAll(weights);
    disposeTokens(tensors);
  }
}
