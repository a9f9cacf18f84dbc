/** One activation stream [N, T, C]: windows on the device as far as they fit, the rest in a file. */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { fileError, readFully, writeFully } from "../util/fs.ts";

/** N windows of T tokens with C channels. */
export interface StreamShape {
  readonly windows: number;
  readonly tokens: number;
  readonly channels: number;
}

/** How much of a stream stays in the device's memory, and the file that takes the rest. */
export interface Spill {
  /** Windows in memory. */
  readonly resident: number;
  /** File to create; it loses its name at once, so that a killed process leaves nothing behind. */
  readonly file: string;
}

/** Bytes of one window. */
export function windowBytes({ tokens, channels }: Omit<StreamShape, "windows">): number {
  return 4 * tokens * channels;
}

/** States f32 by window. Values do not depend on where a window lies. */
export class Stream {
  readonly windows: number;
  readonly #device: string;
  readonly #shape: readonly [1, number, number];
  readonly #bytes: number;
  /** Windows [0, resident); undefined when there are none. */
  readonly #memory: Tensor | undefined;
  readonly #resident: number;
  readonly #file: string;
  #fd: number | undefined;

  /** Contents are undefined until stored. Throws: AQ_OOM, AQ_FILE when the file cannot be made. */
  constructor({ windows, tokens, channels }: StreamShape, spill?: Spill, device = "cpu") {
    this.windows = windows;
    this.#device = device;
    this.#shape = [1, tokens, channels];
    this.#bytes = windowBytes({ tokens, channels });
    this.#resident = Math.min(windows, spill?.resident ?? windows);
    this.#file = spill?.file ?? "";
    if (this.#resident < windows) this.#fd = createNameless(this.#file);
    try {
      if (this.#resident > 0) {
        this.#memory = keep(Tensor.empty([this.#resident, tokens, channels], "f32", device));
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Window n as [1, T, C]; the caller disposes it, and must not write to it. Throws: AQ_FILE. */
  window(n: number): Tensor {
    this.#check(n);
    if (n < this.#resident) return this.#view(n);
    const data = new Float32Array(this.#bytes / 4);
    const bytes = new Uint8Array(data.buffer);
    readFully(this.#fd as number, bytes, this.#position(n), this.#file);
    return Tensor.from(data, this.#shape, "f32", this.#device);
  }

  /** Replaces window n by states [1, T, C]. Throws: AQ_SHAPE, AQ_FILE when the disk is full. */
  store(n: number, states: Tensor): void {
    this.#check(n);
    const [, tokens, channels] = this.#shape;
    if (states.dtype !== "f32" || states.size !== tokens * channels) {
      throw new AqError(
        "AQ_SHAPE",
        `a stream of f32 [1, ${tokens}, ${channels}] cannot hold ${states.dtype} [${states.shape.join(", ")}]`,
      );
    }
    if (n < this.#resident) {
      scope(() => {
        invokeOne(
          "cast",
          [states.reshape(this.#shape)],
          { dtype: dtypeCode("f32") },
          this.#view(n),
        );
      });
    } else {
      const data = states.floats();
      writeFully(this.#fd as number, new Uint8Array(data.buffer), this.#file, this.#position(n));
    }
  }

  dispose(): void {
    this.#memory?.dispose();
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
    this.#fd = undefined;
  }

  #view(n: number): Tensor {
    return (this.#memory as Tensor).view((n * this.#bytes) / 4, this.#shape);
  }

  #position(n: number): number {
    return (n - this.#resident) * this.#bytes;
  }

  #check(n: number): void {
    if (!Number.isInteger(n) || n < 0 || n >= this.windows) {
      throw new AqError("AQ_INTERNAL", `a stream of ${this.windows} windows has no window ${n}`);
    }
  }
}

/** An open file without a name: the system frees it when it is closed, however the process ends. */
function createNameless(file: string): number {
  try {
    fs.mkdirSync(path.dirname(file), { recursive: true });
    const fd = fs.openSync(file, "w+");
    fs.rmSync(file, { force: true });
    return fd;
  } catch (error) {
    throw fileError("create", file, error);
  }
}
