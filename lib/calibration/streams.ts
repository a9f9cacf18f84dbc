/** The activation streams: what flows into the block at hand, for every calibration window. */

import * as path from "node:path";
import { AqError } from "../errors.ts";
import { embedWindow } from "../eval/perplexity.ts";
import { disposeAll } from "../models/load.ts";
import type { WeightSource } from "../models/source.ts";
import { deviceInfo } from "../tensor/device.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Spill, Stream, windowBytes } from "./stream.ts";

/** Where streams may lie. */
export interface StreamPlace {
  /** Bytes that all streams together may take in the device's memory; undefined: as many as there are. */
  readonly memory: number | undefined;
  /** Folder for the files of what does not fit. */
  readonly dir: string;
}

/** Full-precision and quantized stream, and the targets of the second loss if it is used. */
export class Streams {
  readonly fp: Stream;
  readonly quantized: Stream;
  readonly aug: Stream | undefined;
  /** First window of the full-precision stream before the block at hand, [1, T, C]. */
  readonly sample: Tensor;
  readonly windows: number;

  /** Embeds all windows. Throws: AQ_OOM, AQ_FILE, and what reading can throw. */
  constructor(
    source: WeightSource,
    windows: readonly Int32Array[],
    withAug: boolean,
    place: StreamPlace,
  ) {
    const shape = {
      windows: windows.length,
      tokens: windows[0]?.length ?? 0,
      channels: source.model.shape.hidden,
    };
    this.windows = windows.length;
    const made: Stream[] = [];
    const resident = residentWindows(place.memory, windowBytes(shape), withAug ? 3 : 2);
    const make = (name: string): Stream => {
      const spill: Spill = { resident, file: path.join(place.dir, `${name}.stream`) };
      const stream = new Stream(shape, spill, source.device);
      made.push(stream);
      return stream;
    };
    try {
      this.fp = make("full-precision");
      this.quantized = make("quantized");
      this.aug = withAug ? make("second-loss") : undefined;
      this.#embed(source, windows);
      this.sample = Tensor.empty([1, shape.tokens, shape.channels], "f32", source.device);
    } catch (error) {
      for (const stream of made) stream.dispose();
      throw error;
    }
  }

  #embed(source: WeightSource, windows: readonly Int32Array[]): void {
    const outer = source.loadOuter();
    try {
      for (const [n, ids] of windows.entries()) {
        scope(() => {
          const states = embedWindow(source.model, outer, ids);
          this.fp.store(n, states);
          this.quantized.store(n, states);
        });
      }
    } finally {
      disposeAll(outer);
    }
  }

  /** Keeps the first window of the full-precision stream, which the block is about to replace. */
  keepSample(): void {
    scope(() => {
      invokeOne("cast", [this.fp.window(0)], { dtype: dtypeCode("f32") }, this.sample);
    });
  }

  dispose(): void {
    this.fp.dispose();
    this.quantized.dispose();
    this.aug?.dispose();
    this.sample.dispose();
  }
}

/** Share of a GPU's memory that streams may take where no limit is set; the rest is for training. */
const GPU_SHARE = 0.5;

/** The limit on memory, checked, or that of the device. Throws: AQ_ARG. */
export function streamBudget(bytes: number | undefined, device = "cpu"): number | undefined {
  if (bytes !== undefined && !(Number.isSafeInteger(bytes) && bytes >= 0)) {
    throw new AqError("AQ_ARG", `streamMemory must be a whole number of bytes, got ${bytes}`);
  }
  if (bytes !== undefined || device === "cpu") return bytes;
  return GPU_SHARE * deviceInfo(device).totalBytes;
}

/** Windows of each stream that stay in memory. */
export function residentWindows(
  memory: number | undefined,
  bytes: number,
  streams: number,
): number {
  return memory === undefined ? Number.POSITIVE_INFINITY : Math.floor(memory / (bytes * streams));
}
