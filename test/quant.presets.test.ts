// Schemes by name: what each stands for, what may be said beside it, and what is refused.
import { describe, expect, it } from "vitest";
import { SCHEME_NAMES, type SchemeOptions, schemeOf } from "../lib/quant/presets.ts";
import { schemeName } from "../lib/quant/scheme.ts";
import { expectAqError } from "./helpers/expect-error.ts";

const NVFP4 = { wbits: 4, abits: 4, groupSize: 16, symmetric: true, numbers: "nvfp4" };
const PLAIN = { groupSize: 0, symmetric: false };

describe("a scheme", () => {
  it.each([
    ["NVFP4", NVFP4],
    ["NVFP4A16", { ...NVFP4, abits: 16 }],
    ["MXFP4", { ...NVFP4, groupSize: 32, numbers: "mxfp4" }],
    ["MXFP4A16", { ...NVFP4, abits: 16, groupSize: 32, numbers: "mxfp4" }],
    ["W4A16", { wbits: 4, abits: 16, ...PLAIN }],
    ["W3A16", { wbits: 3, abits: 16, ...PLAIN }],
    ["W2A16", { wbits: 2, abits: 16, ...PLAIN }],
    ["W4A4", { wbits: 4, abits: 4, ...PLAIN }],
    ["W8A8", { wbits: 8, abits: 8, groupSize: 0, symmetric: true }],
  ] as const)("%s is what its name says", (scheme, expected) => {
    expect(schemeOf({ scheme })).toEqual(expected);
    expect(schemeOf({ scheme: scheme.toLowerCase() })).toEqual(expected);
  });

  it("has a row for every name, and 4-bit floats are called by theirs", () => {
    for (const scheme of SCHEME_NAMES) {
      const name = schemeName(schemeOf({ scheme }));
      expect(name.replace(" sym", ""), scheme).toBe(scheme);
    }
  });

  it("is absent where only numbers are given", () => {
    expect(schemeOf({})).toEqual({ wbits: 4, abits: 16, ...PLAIN });
    expect(schemeOf({ wbits: 3, groupSize: 64 })).toEqual({
      wbits: 3,
      abits: 16,
      groupSize: 64,
      symmetric: false,
    });
    // No key more than before: old runs are recognized by it.
    expect(Object.keys(schemeOf({ scheme: "W4A4" }))).toEqual(Object.keys(schemeOf({})));
  });

  it("of integers may be refined", () => {
    expect(schemeOf({ scheme: "W4A16", groupSize: 128, symmetric: true })).toEqual(
      schemeOf({ wbits: 4, groupSize: 128, symmetric: true }),
    );
    expect(schemeOf({ scheme: "W8A8", symmetric: false }).symmetric).toBe(false);
  });

  it.each([
    { scheme: "NVFP4", wbits: 4, abits: 4, groupSize: 16, symmetric: true },
    { scheme: "MXFP4A16", groupSize: 32 },
    { scheme: "W8A8", wbits: 8, abits: 8 },
  ] as SchemeOptions[])("agrees with numbers that say the same: %j", (options) => {
    expect(schemeOf(options)).toEqual(schemeOf({ scheme: options.scheme }));
  });

  it.each([
    [{ scheme: "NVFP4", abits: 16 }, ["--abits 16", "4-bit activations", "--scheme NVFP4A16"]],
    [{ scheme: "NVFP4A16", abits: 4 }, ["activations as they are", "take --scheme NVFP4"]],
    [{ scheme: "NVFP4", wbits: 8 }, ["--wbits 8", "4-bit weights", "leave --wbits out"]],
    [{ scheme: "NVFP4", groupSize: 32 }, ["--group-size 32", "groups of 16"]],
    [{ scheme: "MXFP4", groupSize: 0 }, ["--group-size 0", "groups of 32"]],
    [{ scheme: "MXFP4", symmetric: false }, ["symmetric about zero"]],
    [{ scheme: "W4A16", wbits: 3 }, ["--wbits 3", "--scheme W3A16"]],
    [{ scheme: "W8A8", abits: 16 }, ["--abits 16", "without --scheme"]],
    [{ scheme: "W5A16" }, ["W5A16", "did you mean W"]],
    [{ scheme: "nvfp" }, ["did you mean NVFP4?"]],
    [{ scheme: "int8" }, ["NVFP4, NVFP4A16, MXFP4"]],
    [{ scheme: "W4A16", groupSize: -1 }, ["groupSize"]],
  ] as [SchemeOptions, string[]][])("refuses %j", (options, parts) => {
    expectAqError(() => schemeOf(options), "AQ_ARG", ...parts);
  });
});
