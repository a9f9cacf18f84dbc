/** Element types of the engine, in the order of aq_dtype (native/abi/backend.h). */
export const DTYPES = ["f64", "f32", "bf16", "f16", "i32", "i8", "u8"] as const;

export type DType = (typeof DTYPES)[number];

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<DType, number>> = {
  f64: 8,
  f32: 4,
  bf16: 2,
  f16: 2,
  i32: 4,
  i8: 1,
  u8: 1,
};

/** What a tensor's bytes are read as in JavaScript; half types stay bit patterns. */
export type TypedArray =
  | Float64Array
  | Float32Array
  | Uint16Array
  | Int32Array
  | Int8Array
  | Uint8Array;

/** Number of a dtype in the C interface. */
export function dtypeCode(dtype: DType): number {
  return DTYPES.indexOf(dtype);
}
