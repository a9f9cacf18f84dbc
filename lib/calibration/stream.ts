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

/** Windows that lie one after the other. */
export interface WindowRange {
  readonly first: number;
  readonly count: number;
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
    return this.range({ first: n, count: 1 });
  }

  /** Tokens of a window. */
  get tokens(): number {
    return this.#shape[1];
  }

  /** Windows as [count, T, C]; the caller disposes them, and must not write to them. Throws: AQ_FILE. */
  range({ first, count }: WindowRange): Tensor {
    const end = first + count;
    this.#check(first);
    this.#check(end - 1);
    if (end <= this.#resident) return this.#view(first, count);
    const [, tokens, channels] = this.#shape;
    const all = Tensor.empty([count, tokens, channels], "f32", this.#device);
    try {
      const inMemory = Math.max(0, this.#resident - first);
      if (inMemory > 0) {
        scope(() => {
          const place = all.view(0, [inMemory, tokens, channels]);
          invokeOne("cast", [this.#view(first, inMemory)], { dtype: dtypeCode("f32") }, place);
        });
      }
      for (let i = inMemory; i < count; i++) {
        const data = new Float32Array(this.#bytes / 4);
        const bytes = new Uint8Array(data.buffer);
        readFully(this.#fd as number, bytes, this.#position(first + i), this.#file);
        all.write(data, i * this.#bytes);
      }
      return all;
    } catch (error) {
      all.dispose();
      throw error;
    }
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

  #view(first: number, count = 1): Tensor {
    const [, tokens, channels] = this.#shape;
    return (this.#memory as Tensor).view((first * this.#bytes) / 4, [count, tokens, channels]);
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
