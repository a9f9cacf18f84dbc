// Cases of packed inference: int4_pack and int4_matmul.
import { pack, unpack } from "../reference/int4-matmul.ts";
import type { Dims } from "./case.ts";
import { packedCases } from "./packed-order.ts";

const PACK_SETS: readonly Dims[] = [
  { O: 1, I: 1, group: 0, bits: 4 },
  { O: 16, I: 128, group: 32, bits: 4 },
  { O: 23, I: 200, group: 64, bits: 4 },
  { O: 48, I: 300, group: 128, bits: 3 },
  { O: 33, I: 515, group: 256, bits: 2 },
  { O: 9, I: 77, group: 0, bits: 1 },
];

const PACK_REAL: readonly Dims[] = [
  { O: 1376, I: 512, group: 0, bits: 4 },
  { O: 8192, I: 8192, group: 128, bits: 4 },
];

/**
 * x: bits of the tokens' grid, 0 without one. half 1 (2): x is bf16 (f16), and all numbers are so
 * round that the result is exact in it.
 */
const PRODUCT_SETS: readonly Dims[] = [
  { M: 1, O: 1, I: 1, group: 0, bits: 4, x: 0, bias: 1, half: 0 },
  { M: 1, O: 70, I: 256, group: 128, bits: 4, x: 0, bias: 0, half: 0 },
  { M: 3, O: 40, I: 200, group: 64, bits: 4, x: 0, bias: 1, half: 0 },
  { M: 9, O: 33, I: 300, group: 32, bits: 3, x: 0, bias: 0, half: 0 },
  { M: 17, O: 64, I: 515, group: 256, bits: 2, x: 0, bias: 1, half: 0 },
  { M: 70, O: 150, I: 384, group: 0, bits: 4, x: 0, bias: 0, half: 0 },
  { M: 2, O: 40, I: 256, group: 128, bits: 4, x: 8, bias: 1, half: 0 },
  { M: 19, O: 33, I: 200, group: 32, bits: 4, x: 4, bias: 0, half: 0 },
  { M: 35, O: 90, I: 130, group: 64, bits: 3, x: 8, bias: 0, half: 0 },
  { M: 70, O: 17, I: 77, group: 0, bits: 2, x: 6, bias: 1, half: 0 },
  { M: 130, O: 80, I: 640, group: 128, bits: 4, x: 8, bias: 0, half: 0 },
  ...[1, 2].flatMap((half) => [
    { M: 1, O: 40, I: 64, group: 32, bits: 4, x: 0, bias: 0, half },
    { M: 5, O: 70, I: 64, group: 0, bits: 4, x: 0, bias: 1, half },
    { M: 13, O: 33, I: 56, group: 32, bits: 3, x: 0, bias: 1, half },
    { M: 30, O: 66, I: 40, group: 64, bits: 4, x: 0, bias: 0, half },
    { M: 61, O: 130, I: 64, group: 32, bits: 3, x: 0, bias: 1, half },
    { M: 100, O: 260, I: 33, group: 32, bits: 4, x: 0, bias: 1, half },
    { M: 300, O: 40, I: 64, group: 64, bits: 4, x: 0, bias: 1, half },
    { M: 7, O: 70, I: 2100, group: 128, bits: 4, x: 0, bias: 0, half },
    { M: 66, O: 130, I: 1104, group: 128, bits: 4, x: 0, bias: 0, half },
    { M: 18, O: 40, I: 60, group: 32, bits: 4, x: 4, bias: 1, half },
    { M: 129, O: 40, I: 1090, group: 32, bits: 4, x: 0, bias: 1, half },
  ]),
];

const PRODUCT_REAL: readonly Dims[] = [
  ...[1, 16, 64, 2048].map((M) => ({ M, O: 4096, I: 4096, group: 128, x: 0, half: 1 })),
  { M: 16, O: 11008, I: 4096, group: 128, x: 0, half: 1 },
  { M: 16, O: 4096, I: 4096, group: 128, x: 8, half: 0 },
  { M: 16, O: 4096, I: 4096, group: 128, x: 0, half: 0 },
  ...[1, 8].map((M) => ({ M, O: 11008, I: 4096, group: 128, x: 0, half: 0 })),
  { M: 1, O: 11008, I: 4096, group: 0, x: 8, half: 0 },
].map((dims) => ({ ...dims, bits: 4, bias: 0 }));

export const CASES = packedCases({
  pack: { op: "int4_pack", sets: PACK_SETS, real: PACK_REAL },
  product: { op: "int4_matmul", sets: PRODUCT_SETS, real: PRODUCT_REAL },
  bits: 4,
  packed: pack,
  unpacked: unpack,
});
