/** The TypeScript mirror of native/napi. */

import type { TypedArray } from "../tensor/dtype.ts";

/** A tensor held by the engine (native/napi/tensor_handle.h). */
export interface TensorHandle {
  readonly shape: number[];
  readonly dtype: number;
  readonly device: string;
  readonly disposed: boolean;
  /** Fills the whole view from the tensor's bytes at byteOffset; waits for the device. */
  read<A extends TypedArray>(target: A, byteOffset?: number): A;
  write(source: TypedArray, byteOffset?: number): void;
  view(offset: number, shape: readonly number[]): TensorHandle;
  dispose(): void;
  /** As dispose, and gives the handle back: it may be another tensor's soon, so forget it. */
  recycle(): void;
}

/** A recorded sequence of ops held by the engine (native/napi/graph_handle.h). */
export interface GraphHandle {
  launch(): void;
  dispose(): void;
}

/** One op of the registry (native/core/op.h). */
export interface OpInfo {
  readonly name: string;
  readonly inputs: readonly {
    readonly name: string;
    readonly optional: boolean;
    readonly mutable: boolean;
  }[];
  readonly outputs: readonly string[];
  readonly params: readonly { readonly name: string; readonly whole: boolean }[];
}

export interface DeviceInfo {
  readonly name: string;
  readonly detail: string;
  readonly totalBytes: number;
}

export interface MemoryInfo {
  readonly usedBytes: number;
  readonly cachedBytes: number;
  readonly peakBytes: number;
}

/** What the CPU addon exports. */
export interface NativeCore {
  readonly abiVersion: number;
  ops(): OpInfo[];
  invoke(
    op: number,
    inputs: readonly (TensorHandle | undefined)[],
    params: readonly number[],
    outs?: readonly TensorHandle[],
  ): TensorHandle[];
  kernelCalls(backend: string): number[];
  empty(device: string, dtype: number, shape: readonly number[]): TensorHandle;
  devices(): string[];
  deviceInfo(device: string): DeviceInfo;
  memory(device: string): MemoryInfo;
  synchronize(device: string): Promise<void>;
  /** Fills `target`, which has the tensor's size, with its bytes as of this call. */
  readLater<A extends TypedArray>(tensor: TensorHandle, target: A): Promise<A>;
  setOption(device: string, name: string, value: string): void;
  /** False where the device does not record. Nothing may be awaited before one of the next two. */
  captureBegin(device: string): boolean;
  captureEnd(device: string): GraphHandle;
  captureAbandon(device: string): void;
  threads(): number;
  setThreads(count: number): void;
  liveTensors(): number;
  registerBackend(backend: object): void;
}
