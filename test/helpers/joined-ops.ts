// For ops that take the quantizer behind them in: their inputs, and how near they are to the ops apart.
import { createHash } from "node:crypto";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { difference } from "./compare.ts";
import { Draw } from "./random.ts";
import { toTensor } from "./run-op.ts";
import { decode } from "./value.ts";

/** The inputs of a call, and the gradient of what it gives. */
export function drawn(M: number, C: number, device: string): (shape: readonly number[]) => Tensor {
  const draw = new Draw(M + C, "f32", true);
  return (shape) => toTensor(draw.normal(shape, 0.7, 0.3), { device, dtype: "f32" });
}

/** What the sums of a GPU, which are in other orders, may be apart, and their rounding to bf16. */
const SUMS = { rtol: 2 ** -7, atol: 1e-4 };

/** Where gradients differ: the bytes on a CPU, more than that elsewhere. */
export function differences(
  actual: readonly Tensor[],
  expected: readonly (Tensor | undefined)[],
  device: string,
): readonly string[] {
  const limits = device === "cpu" ? { rtol: 0, atol: 0 } : SUMS;
  return actual.flatMap((tensor, i) => {
    const other = expected[i] as Tensor;
    const read = (x: Tensor) => decode(x.read(), x.dtype);
    return difference(`gradient ${i}`, read(tensor), read(other), limits) ?? [];
  });
}

/** Digests of the bytes. */
export const read = (tensors: readonly (Tensor | undefined)[]) =>
  tensors.map((tensor) => {
    const { buffer } = tensor?.read() ?? new Uint8Array();
    return createHash("sha256").update(new Uint8Array(buffer)).digest("hex");
  });

/** The norms, and the parameters of their gradients. */
export const NORMS = [
  { op: "rms_norm", params: { need_gx: 1, need_gb: 1 } },
  { op: "layer_norm", params: {} },
] as const;
