// Memory runs out: the error says how much was asked and how much is in use, and disposing helps.
// The limit is read when the addon is loaded, so it is set before anything imports it.
import { describe, expect, it } from "vitest";

const LIMIT = 64 << 20;
process.env["AQ_MEMORY_LIMIT"] = String(LIMIT);
const { AqError } = await import("../lib/errors.ts");
const { memory } = await import("../lib/tensor/device.ts");
const { invoke } = await import("../lib/tensor/invoke.ts");
const { scope } = await import("../lib/tensor/scope.ts");
const { liveTensors, Tensor } = await import("../lib/tensor/tensor.ts");

const MIB = 1 << 20;

function oom(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    if (error instanceof AqError && error.code === "AQ_OOM") return error.message;
    throw error;
  }
  throw new Error("nothing was thrown");
}

describe("under a memory limit of 64 MiB", () => {
  it("a tensor that does not fit is refused with what is asked, in use and allowed", () => {
    scope(() => {
      Tensor.empty([16 * MIB], "u8");
      const message = oom(() => Tensor.empty([60 * MIB], "u8"));
      for (const part of [60 * MIB, 16 * MIB, LIMIT]) expect(message).toContain(String(part));
    });
    expect(memory("cpu").usedBytes).toBe(0);
  });

  it("an op whose output does not fit leaves nothing behind", () => {
    scope(() => {
      const x = Tensor.empty([10 * MIB], "f32");
      const live = liveTensors();
      oom(() => invoke("add", [x, x], { alpha: 1 }));
      expect(liveTensors()).toBe(live);
      expect(memory("cpu").usedBytes).toBe(40 * MIB);
    });
  });

  it("cached blocks of other sizes make way for a large one", () => {
    for (const n of [1, 3, 5, 7]) Tensor.empty([n * MIB], "f32").dispose();
    scope(() => {
      const x = Tensor.empty([15 * MIB], "f32");
      expect(x.size).toBe(15 * MIB);
    });
    expect(memory("cpu").usedBytes).toBe(0);
  });
});
