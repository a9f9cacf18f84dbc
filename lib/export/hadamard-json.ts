/**
 * The transform before down in aq_config.json. With F = 2^k m, m odd, it multiplies a row x of F values
 * by diag(s) (H (x) R) / sqrt(2^k): H is Sylvester's Hadamard matrix of 2^k, R the Hartley matrix of m,
 * R_ij = (cos t + sin t) / sqrt(m), t = 2 pi i j / m, and (x) the Kronecker product. The signs s are
 * written as hexadecimal bits, the first channel in the highest bit of the first digit; 1 means -1.
 */

import { AqError } from "../errors.ts";
import type { HadamardDown } from "../models/family.ts";
import { oddPart } from "../models/hadamard-down.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";

const KIND = "hadamard-hartley";

export function hadamardJson({ signs }: HadamardDown): JsonObject {
  const bytes = Buffer.alloc(Math.ceil(signs.length / 8));
  for (const [i, sign] of signs.entries()) {
    const at = i >> 3;
    if (sign < 0) bytes[at] = (bytes[at] as number) | (128 >> (i & 7));
  }
  return {
    kind: KIND,
    size: signs.length,
    odd: oddPart(signs.length),
    signs: bytes.toString("hex"),
  };
}

/** Throws: AQ_FORMAT when it is there but malformed. */
export function readHadamard(json: unknown, where: string): HadamardDown | null {
  if (json === undefined || json === null) return null;
  const fail = (expected: string, got: unknown): never => {
    throw new AqError(
      "AQ_FORMAT",
      `${where}: expected ${expected} in "hadamard_down", got ${kindOf(got)}; copy the whole output folder again`,
    );
  };
  if (!isJsonObject(json)) return fail("an object", json);
  const { kind, size, odd, signs } = json;
  if (kind !== KIND) fail(`"${KIND}" as "kind"`, kind);
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 1) {
    return fail('a number of channels as "size"', size);
  }
  if (odd !== oddPart(size)) fail(`${oddPart(size)} as "odd"`, odd);
  const digits = 2 * Math.ceil(size / 8);
  if (typeof signs !== "string" || signs.length !== digits || !/^[0-9a-f]*$/.test(signs)) {
    return fail(`${digits} hexadecimal digits as "signs"`, signs);
  }
  const bytes = Buffer.from(signs, "hex");
  const isNegative = (i: number): boolean => ((bytes[i >> 3] as number) & (128 >> (i & 7))) !== 0;
  return { signs: Int8Array.from({ length: size }, (_, i) => (isNegative(i) ? -1 : 1)) };
}
