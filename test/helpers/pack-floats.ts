/** 4-bit floats in the layouts of compressed-tensors, ModelOpt and our own, as plainly as they are described. */
import type { Tensors } from "./pack.ts";
import type { FloatName, SyntheticFloats } from "./synthetic-floats.ts";
import type { StoredTensor } from "./tensor-file.ts";

export interface FloatGrid extends SyntheticFloats {
  readonly rows: number;
  readonly columns: number;
}

export type FloatLayout = "compressed-tensors" | "modelopt" | "aq";

function packed({ codes, rows, columns }: FloatGrid): StoredTensor {
  const bytes = new Uint8Array(codes.length / 2);
  for (const [at, code] of codes.entries()) {
    bytes[at >> 1] = (bytes[at >> 1] as number) + code * (at % 2 === 0 ? 1 : 16);
  }
  return { dtype: "U8", shape: [rows, columns / 2], bytes };
}

export function single(value: number, shape: readonly number[]): StoredTensor {
  return { dtype: "F32", shape, bytes: new Uint8Array(Float32Array.of(value).buffer) };
}

/** Tensors of a linear by the ends of their names. */
export function floatTensors(grid: FloatGrid, layout: FloatLayout): Tensors {
  const { rows, columns, group, scaleBytes: bytes, global, input, numbers } = grid;
  const dtype = numbers === "nvfp4" && layout !== "aq" ? "F8_E4M3" : "U8";
  const scales = { dtype, shape: [rows, columns / group], bytes };
  const given = (name: string, value: number | null, shape: number[] = [1]): Tensors =>
    value === null ? {} : { [name]: single(value, shape) };
  const inverse = (x: number | null): number | null => (x === null ? null : 1 / x);
  switch (layout) {
    case "compressed-tensors":
      return {
        weight_packed: packed(grid),
        weight_scale: scales,
        ...given("weight_global_scale", global),
        ...given("input_global_scale", input),
      };
    case "modelopt":
      return {
        weight: packed(grid),
        weight_scale: scales,
        ...given("weight_scale_2", inverse(global), []),
        ...given("input_scale", inverse(input), []),
      };
    case "aq":
      return {
        "weight.codes": packed(grid),
        "weight.scale": scales,
        ...given("weight.global", global),
      };
  }
}

/** `quantization_config` of such folders. */
export function floatDescription(
  numbers: FloatName,
  layout: FloatLayout,
  isQuantized = false,
): Record<string, unknown> {
  const group = numbers === "nvfp4" ? 16 : 32;
  if (layout === "aq") {
    const own = { quant_method: "aq", format: 1, bits: 4, group_size: group, symmetric: true };
    return { ...own, numbers };
  }
  if (layout === "modelopt") {
    const algorithm = isQuantized ? "NVFP4" : "W4A16_NVFP4";
    return { quant_method: "modelopt", quant_algo: algorithm, ignore: ["lm_head"] };
  }
  const args = {
    num_bits: 4,
    type: "float",
    strategy: numbers === "nvfp4" ? "tensor_group" : "group",
    group_size: group,
    symmetric: true,
  };
  const dynamic = numbers === "nvfp4" ? "local" : true;
  return {
    quant_method: "compressed-tensors",
    format: `${numbers}-pack-quantized`,
    ignore: ["lm_head"],
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights: { ...args, dynamic: false },
        input_activations: isQuantized ? { ...args, dynamic } : null,
      },
    },
  };
}
