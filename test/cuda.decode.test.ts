// Decoding on a GPU; skipped where there is no GPU or no CUDA addon.
import { describe, expect, it } from "vitest";
import { CACHE_CHECKS } from "./helpers/cuda-cache-checks.ts";
import { DECODE_CHECKS } from "./helpers/cuda-decode-checks.ts";
import { devices } from "./helpers/device.ts";

const device = devices().find((name) => name.startsWith("cuda")) as `cuda:${number}` | undefined;

describe.skipIf(device === undefined)("decoding on a GPU", () => {
  it.each([...DECODE_CHECKS, ...CACHE_CHECKS].map((check) => [check.name, check] as const))(
    "%s",
    async (_, check) => {
      const { ok, text } = await check.run(device as `cuda:${number}`);
      expect(ok, text).toBe(true);
    },
  );
});
