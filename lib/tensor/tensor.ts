/** A tensor: a handle to memory of the engine, with its shape at hand. */

import { AqError } from "../errors.ts";
import { fromNative, native } from "../native/load.ts";
import type { TensorHandle } from "../native/types.ts";
import { DTYPE_BYTES, DTYPES, type DType, dtypeCode, type TypedArray } from "./dtype.ts";
import { enterScope } from "./scope.ts";

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, d) => product * d, 1);
}

/** An empty typed array that holds `count` elements of a dtype as they are in memory. */
export function allocate(dtype: DType, count: number): TypedArray {
  switch (dtype) {
    case "f64":
      return new Float64Array(count);
    case "f32":
      return new Float32Array(count);
    case "bf16":
    case "f16":
      return new Uint16Array(count);
    case "i32":
      return new Int32Array(count);
    case "i8":
      return new Int8Array(count);
    case "u8":
      return new Uint8Array(count);
  }
}

function dtypeOf(data: TypedArray): DType {
  if (data instanceof Float64Array) return "f64";
  if (data instanceof Float32Array) return "f32";
  if (data instanceof Int32Array) return "i32";
  if (data instanceof Int8Array) return "i8";
  if (data instanceof Uint8Array) return "u8";
  throw new AqError("AQ_DTYPE", "16-bit data needs its dtype said: f16 or bf16");
}

/** Runs a call into the addon, with its errors as AqError. */
export function guarded<T>(body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw fromNative(error);
  }
}

let disposedHandle: TensorHandle | undefined;

/** What every disposed tensor holds: whatever is asked of it throws AQ_DISPOSED. */
function makeDisposed(): TensorHandle {
  const handle = native().empty("cpu", dtypeCode("u8"), [0]);
  handle.dispose();
  return handle;
}

/**
 * Contiguous, row-major, on one device. Whoever makes a tensor disposes it, or makes it inside a
 * `scope`; functions that return tensors return owned ones.
 */
export class Tensor {
  #handle: TensorHandle;
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** Number of elements. */
  readonly size: number;

  /** Takes ownership of a handle of the engine. */
  constructor(handle: TensorHandle) {
    this.#handle = handle;
    this.shape = handle.shape;
    this.dtype = DTYPES[handle.dtype] as DType;
    this.size = sizeOf(this.shape);
    enterScope(this);
  }

  /** A tensor with undefined contents. Throws: AQ_OOM, AQ_SHAPE, AQ_DEVICE. */
  static empty(shape: readonly number[], dtype: DType = "f32", device = "cpu"): Tensor {
    return new Tensor(guarded(() => native().empty(device, dtypeCode(dtype), shape)));
  }

  /** A tensor filled from JavaScript. Throws: AQ_SHAPE if the data does not fill it exactly. */
  static from(
    data: TypedArray,
    shape: readonly number[] = [data.length],
    dtype?: DType,
    device = "cpu",
  ): Tensor {
    const type = dtype ?? dtypeOf(data);
    if (data.byteLength !== sizeOf(shape) * DTYPE_BYTES[type]) {
      throw new AqError(
        "AQ_SHAPE",
        `a ${type} tensor [${shape.join(", ")}] needs ${sizeOf(shape) * DTYPE_BYTES[type]} bytes, got ${data.byteLength}`,
      );
    }
    const tensor = Tensor.empty(shape, type, device);
    try {
      tensor.write(data);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /** The engine's; only for the time of a call. */
  get handle(): TensorHandle {
    return this.#handle;
  }

  get device(): string {
    return guarded(() => this.#handle.device);
  }

  get disposed(): boolean {
    return this.#handle.disposed;
  }

  /** A copy of the contents; half types come as bit patterns. Waits for the device. */
  read(): TypedArray {
    return guarded(() => this.#handle.read(allocate(this.dtype, this.size)));
  }

  /** The contents as Float32Array; throws AQ_DTYPE for any other dtype. */
  floats(): Float32Array {
    const data = this.read();
    if (!(data instanceof Float32Array))
      throw new AqError("AQ_DTYPE", `expected an f32 tensor, got ${this.dtype}`);
    return data;
  }

  /**
   * The contents as of this call, whatever happens to the tensor afterwards. The event loop goes on
   * while a GPU is waited for, and so does the GPU with what it is given meanwhile.
   */
  async readAsync(): Promise<TypedArray> {
    if (this.device === "cpu") return this.read();
    try {
      return await native().readLater(this.#handle, allocate(this.dtype, this.size));
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** The first element as a number; for losses, flags and norms. */
  item(): number {
    const one = guarded(() => this.#handle.read(allocate(this.dtype, 1)));
    return one[0] as number;
  }

  /** Overwrites bytes from `byteOffset` on. Throws: AQ_ARG if they do not fit. */
  write(data: TypedArray, byteOffset = 0): void {
    guarded(() => this.#handle.write(data, byteOffset));
  }

  /** Elements [offset, offset + size of shape) under a new shape, sharing memory. */
  view(offset: number, shape: readonly number[]): Tensor {
    return new Tensor(guarded(() => this.#handle.view(offset, shape)));
  }

  /** The same elements under another shape, sharing memory. */
  reshape(shape: readonly number[]): Tensor {
    if (sizeOf(shape) !== this.size) {
      throw new AqError(
        "AQ_SHAPE",
        `cannot see [${this.shape.join(", ")}] as [${shape.join(", ")}]: ${this.size} and ${sizeOf(shape)} elements`,
      );
    }
    return this.view(0, shape);
  }

  /** Frees the memory, unless a view still uses it. Twice is harmless. */
  dispose(): void {
    if (this.#handle === disposedHandle) return;
    this.#handle.recycle();
    // The engine gives the handle to another tensor; this one must not reach it any more.
    disposedHandle ??= makeDisposed();
    this.#handle = disposedHandle;
  }
}

/** Handles of this environment that are alive. */
export function liveTensors(): number {
  return native().liveTensors();
}
