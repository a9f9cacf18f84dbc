// The op cases at one SIMD level. The addon reads AQ_SIMD once, when it is loaded, so every level
// has a test file (a process) of its own, which sets the variable before it imports this module.
import { describe, expect, it } from "vitest";
import { AqError } from "../../lib/errors.ts";
import { deviceInfo } from "../../lib/tensor/device.ts";
import { CASES } from "../cases/index.ts";
import { compareSet } from "./run-op.ts";

/** Whether the processor has the level that AQ_SIMD names. */
function isSupported(): boolean {
  try {
    return deviceInfo("cpu").detail.length > 0;
  } catch (error) {
    if (error instanceof AqError && error.message.includes("AQ_SIMD")) return false;
    throw error;
  }
}

/** Declares the tests of the level that AQ_SIMD names. */
export function testLevel(level: string): void {
  describe.skipIf(!isSupported())(`the ${level} kernels`, () => {
    it(`are the ones in use`, () => {
      expect(deviceInfo("cpu").detail).toContain(level);
    });

    it.each(CASES.map((op) => [op.op, op] as const))("%s equals its reference", (_, op) => {
      for (const dtype of op.dtypes ?? (["f32", "f64"] as const)) {
        for (const dims of op.sets) {
          expect(compareSet(op, dims, { device: "cpu", dtype })).toBeUndefined();
        }
      }
    });
  });
}
