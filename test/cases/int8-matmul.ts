// Cases of packed inference: int8_pack and int8_matmul.
import { pack, unpack } from "../reference/int8-matmul.ts";
import { packedCases } from "./packed-order.ts";

export const CASES = packedCases({
  pack: "int8_pack",
  product: "int8_matmul",
  bits: 8,
  packed: pack,
  unpacked: unpack,
});
