/** The full-precision model's logits for every calibration window: what polish trains towards. */

import * as path from "node:path";
import { setImmediate } from "node:timers/promises";
import { AqError } from "../errors.ts";
import { embedWindow, logitsOf } from "../eval/perplexity.ts";
import type { BlockContext } from "../models/family.ts";
import { disposeAll, type LoadedWeights } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { passThrough } from "../quant/activations.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { forward } from "./passes.ts";
import { Stream, windowBytes } from "./stream.ts";
import { residentWindows, type StreamPlace } from "./streams.ts";

/** Keeps the states behind the last block, and makes logits of them when they are asked for. */
export class Teacher {
  readonly #source: WeightSource;
  readonly #outer: LoadedWeights;
  readonly #states: Stream;

  private constructor(source: WeightSource, outer: LoadedWeights, states: Stream) {
    this.#source = source;
    this.#outer = outer;
    this.#states = states;
  }

  /** Runs all windows through the model, block by block. Throws: AQ_STOPPED, AQ_FILE, AQ_OOM. */
  static async run(
    source: WeightSource,
    context: BlockContext,
    windows: readonly Int32Array[],
    place: StreamPlace,
    signal: AbortSignal | undefined,
  ): Promise<Teacher> {
    const { model } = source;
    const { hidden, blocks } = model.shape;
    const outer = source.loadOuter();
    let states: Stream | undefined;
    try {
      const tokens = windows[0]?.length ?? 0;
      const shape = { windows: windows.length, tokens, channels: hidden };
      const resident = residentWindows(place.memory, windowBytes(shape), 1);
      const spill = { resident, file: path.join(place.dir, "teacher.stream") };
      states = new Stream(shape, spill, source.device);
      const stream = states;
      for (const [n, ids] of windows.entries()) {
        scope(() => stream.store(n, embedWindow(model, outer, ids)));
      }
      for (let i = 0; i < blocks; i++) {
        const weights = source.loadBlock(i);
        try {
          for (let n = 0; n < windows.length; n++) {
            scope(() => {
              const x = stream.window(n);
              stream.store(
                n,
                forward(model, context, weights, x, () => passThrough),
              );
            });
            await setImmediate();
            if (signal?.aborted) throw new AqError("AQ_STOPPED", "stopped before polishing");
          }
        } finally {
          disposeAll(weights);
        }
      }
      return new Teacher(source, outer, stream);
    } catch (error) {
      disposeAll(outer);
      states?.dispose();
      throw error;
    }
  }

  /** Logits [1, T, V] of window n; the caller disposes them. */
  logits(n: number): Tensor {
    return scope(() => logitsOf(this.#source.model, this.#outer, this.#states.window(n)));
  }

  dispose(): void {
    disposeAll(this.#outer);
    this.#states.dispose();
  }
}
