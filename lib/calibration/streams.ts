/** The activation streams: what flows into the block at hand, for every calibration window. */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { embedWindow } from "../eval/perplexity.ts";
import type { Model } from "../models/family.ts";
import { disposeAll, loadOuter } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { windowOf } from "./problem.ts";

/** Copies a window's states into a stream [N, T, C]. */
export function storeWindow(stream: Tensor, n: number, states: Tensor): void {
  scope(() => {
    invokeOne("cast", [states], { dtype: dtypeCode(stream.dtype) }, windowOf(stream, n));
  });
}

/** Full-precision and quantized stream [N, T, C], and the targets of the second loss if it is used. */
export class Streams {
  readonly fp: Tensor;
  readonly quantized: Tensor;
  readonly aug: Tensor | undefined;
  /** First window of the full-precision stream before the block at hand, [1, T, C]. */
  readonly sample: Tensor;
  readonly windows: number;

  /** Embeds all windows. Throws: AQ_OOM, and what reading can throw. */
  constructor(
    checkpoint: Checkpoint,
    model: Model,
    windows: readonly Int32Array[],
    withAug: boolean,
  ) {
    const tokens = windows[0]?.length ?? 0;
    const shape = [windows.length, tokens, model.shape.hidden];
    this.windows = windows.length;
    this.fp = Tensor.empty(shape);
    this.quantized = Tensor.empty(shape);
    this.aug = withAug ? Tensor.empty(shape) : undefined;
    this.sample = Tensor.empty([1, tokens, model.shape.hidden]);
    const outer = loadOuter(checkpoint, model);
    try {
      for (const [n, ids] of windows.entries()) {
        scope(() => {
          const states = embedWindow(model, outer, ids);
          storeWindow(this.fp, n, states);
          storeWindow(this.quantized, n, states);
        });
      }
    } finally {
      disposeAll(outer);
    }
  }

  /** Keeps the first window of the full-precision stream, which the block is about to replace. */
  keepSample(): void {
    scope(() => {
      invokeOne("cast", [windowOf(this.fp, 0)], { dtype: dtypeCode("f32") }, this.sample);
    });
  }

  dispose(): void {
    this.fp.dispose();
    this.quantized.dispose();
    this.aug?.dispose();
    this.sample.dispose();
  }
}
