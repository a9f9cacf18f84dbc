// Passes beside each other on a GPU; skipped where there is no GPU or no CUDA addon.
import { describe, expect, it } from "vitest";
import { PASS_CHECKS } from "./helpers/cuda-pass-checks.ts";
import { devices } from "./helpers/device.ts";

const device = devices().find((name) => name.startsWith("cuda")) as `cuda:${number}` | undefined;

describe.skipIf(device === undefined)("passes on a GPU", () => {
  it.each(PASS_CHECKS.map((check) => [check.name, check] as const))("%s", async (_, check) => {
    const { ok, text } = await check.run(device as `cuda:${number}`);
    expect(ok, text).toBe(true);
  });
});
