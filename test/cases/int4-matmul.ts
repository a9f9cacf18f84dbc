// Cases of packed inference: int4_pack and int4_matmul.
import { pack, unpack } from "../reference/int4-matmul.ts";
import { packedCases } from "./packed-order.ts";

export const CASES = packedCases({
  pack: "int4_pack",
  product: "int4_matmul",
  bits: 4,
  packed: pack,
  unpacked: unpack,
});
