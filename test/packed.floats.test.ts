// 4-bit floats read back from the layouts of compressed-tensors, ModelOpt and our own: known bytes, random
// matrices, and what is refused.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type PackedFloats, scalesOf } from "../lib/packed/float4.ts";
import { dequantize } from "../lib/packed/linear.ts";
import type { QuantizedWeight } from "../lib/quant/quantizer.ts";
import { scaleBytes as bytesOfScales, quantizerOf } from "../lib/quant/quantizers.ts";
import { float4Scheme } from "../lib/quant/scheme.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import type { Tensors } from "./helpers/pack.ts";
import {
  type FloatGrid,
  type FloatLayout,
  floatDescription,
  floatTensors,
  single,
} from "./helpers/pack-floats.ts";
import { readLinear } from "./helpers/read-linear.ts";
import {
  type FloatName,
  floatMatrix,
  randomFloats,
  scaleValue,
} from "./helpers/synthetic-floats.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";

const newFolder = sharedFolders();

const ROW = { minLength: 96, maxLength: 96 };
const SCHEME = float4Scheme("nvfp4", 16);

/** Reads a linear called `p` back. */
function read(tensors: Tensors, config: object, shape: [number, number]): PackedFloats {
  return readLinear(newFolder("folder"), tensors, config, shape) as PackedFloats;
}

const valuesOf = (packed: PackedFloats): number[] => [
  ...scope(() => ({ values: dequantize(packed).floats() })).values,
];

/** Every layout, with the formats that it has. */
const KINDS: readonly [FloatLayout, FloatName][] = [
  ["compressed-tensors", "nvfp4"],
  ["compressed-tensors", "mxfp4"],
  ["modelopt", "nvfp4"],
  ["aq", "nvfp4"],
  ["aq", "mxfp4"],
];

const bytes = (list: readonly number[], dtype = "U8", shape: number[] = [1, list.length]) => ({
  dtype,
  shape,
  bytes: Uint8Array.from(list),
});

describe("known bytes", () => {
  /** Codes 0 to 15, the first of two in the lower half. */
  const ALL = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
  const NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6];
  const times = (factor: number): number[] => NUMBERS.map((x) => x * factor + 0);

  it("of NVFP4 in compressed-tensors", () => {
    // Scales 1.5, the largest and the smallest of e4m3fn, and a global scale of 2.
    const scales = bytes([0x3c, 0x7e, 0x01, 0x38], "F8_E4M3");
    const packed = read(
      {
        weight_packed: bytes([...ALL, ...ALL, ...ALL, ...ALL]),
        weight_scale: scales,
        weight_global_scale: single(2, [1]),
        input_global_scale: single(320, [1]),
      },
      floatDescription("nvfp4", "compressed-tensors", true),
      [1, 64],
    );
    expect([...packed.codes.subarray(0, 16)]).toEqual([...Array(16).keys()]);
    expect([...scalesOf(packed)]).toEqual([1.5, 448, 2 ** -9, 1]);
    expect(packed.global).toEqual({ stored: 2, isInverse: false, scale: 2, factor: 0.5 });
    expect(packed.input?.scale).toBe(320);
    const expected = [1.5, 448, 2 ** -9, 1].flatMap((scale) => times(scale / 2));
    expect(valuesOf(packed).map((x) => x + 0)).toEqual(expected);
  });

  it("of NVFP4 in ModelOpt's layout, which has the inverse of global scales", () => {
    const packed = read(
      {
        weight: bytes(ALL),
        weight_scale: bytes([0x40], "F8_E4M3"),
        weight_scale_2: single(0.5, []),
        input_scale: single(0.25, []),
      },
      floatDescription("nvfp4", "modelopt", true),
      [1, 16],
    );
    expect(packed.global).toEqual({ stored: 0.5, isInverse: true, scale: 2, factor: 0.5 });
    expect(packed.input?.scale).toBe(4);
    expect(valuesOf(packed).map((x) => x + 0)).toEqual(times(1));
  });

  it("of MXFP4", () => {
    const scales = bytes([127, 120, 1, 254]);
    const packed = read(
      { weight_packed: bytes(new Array(8).fill(ALL).flat()), weight_scale: scales },
      floatDescription("mxfp4", "compressed-tensors"),
      [1, 128],
    );
    expect([...scalesOf(packed)]).toEqual([1, 2 ** -7, 2 ** -126, 2 ** 127]);
    expect([packed.global, packed.input]).toEqual([null, null]);
    const [one, small] = [times(1), times(2 ** -7)];
    expect(
      valuesOf(packed)
        .slice(0, 64)
        .map((x) => x + 0),
    ).toEqual([...one, ...one, ...small, ...small]);
  });

  it("of scales, all of them", () => {
    const check = (numbers: FloatName, count: number): void => {
      const scaleBytes = Uint8Array.from({ length: count }, (_, i) => i);
      const expected = [...scaleBytes].map((byte) => scaleValue(byte, numbers));
      expect([...scalesOf({ kind: numbers, scaleBytes })]).toEqual(expected);
    };
    check("nvfp4", 0x7f);
    check("mxfp4", 0xff);
    expect(scaleValue(0x7e, "nvfp4")).toBe(448);
  });
});

/** Random matrices whose rows groups divide. */
function grids(numbers: FloatName): fc.Arbitrary<FloatGrid> {
  const group = numbers === "nvfp4" ? 16 : 32;
  return fc
    .tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 5 }), fc.nat(), fc.boolean())
    .map(([rows, groups, seed, isQuantized]) => {
      let state = seed >>> 0;
      const random = (): number => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state / 2 ** 32;
      };
      const columns = groups * group;
      const input = numbers === "nvfp4" && isQuantized ? Math.fround(1 + 500 * random()) : null;
      return { rows, columns, ...randomFloats(rows, columns, numbers, input, random) };
    });
}

describe.each(KINDS)("random matrices come back from %s, %s", (layout, numbers) => {
  it("bit for bit, and stand for value (scale / g)", () => {
    fc.assert(
      fc.property(grids(numbers), (grid) => {
        const { rows, columns, codes, scaleBytes, global, input } = grid;
        const config = floatDescription(numbers, layout, input !== null);
        const packed = read(floatTensors(grid, layout), config, [rows, columns]);
        expect([...packed.codes]).toEqual([...codes]);
        expect([...packed.scaleBytes]).toEqual([...scaleBytes]);
        expect(packed).toMatchObject({ kind: numbers, rows, columns, group: grid.group });
        const stored = (x: number | null): number | null =>
          x === null || layout !== "modelopt" ? x : Math.fround(1 / x);
        expect(packed.global?.stored ?? null).toBe(stored(global));
        expect(packed.input?.stored ?? null).toBe(layout === "aq" ? null : stored(input));
        // What ModelOpt's layout divides by is the inverse of an inverse.
        const own = { ...grid, global: packed.global?.scale ?? null };
        expect(valuesOf(packed)).toEqual([...floatMatrix(own, columns)]);
      }),
      { numRuns: 30 },
    );
  });
});

/** A row of numbers near one size, with what is hard for a format in some of its groups. */
const HARD: Readonly<Record<string, (row: Float32Array) => void>> = {
  "a group of zeros": (row) => void row.fill(0, 0, 32),
  "nothing but zeros": (row) => void row.fill(0),
  "a group of subnormals": (row) => void row.fill(3e-42, 32, 64),
  "a group far below the others": (row) => void row.fill(1e-9, 0, 32),
  "one huge outlier": (row) => void row.fill(-3e4, 37, 38),
};

describe.each(Object.keys(HARD))("%s in a matrix", (name) => {
  it.each(KINDS)("comes back from %s, %s, as it was quantized", (layout, numbers) => {
    const group = numbers === "nvfp4" ? 16 : 32;
    fc.assert(
      fc.property(fc.array(fc.double({ min: -1, max: 1, noNaN: true }), ROW), (list) => {
        const row = Float32Array.from(list);
        HARD[name]?.(row);
        const made = scope(() => {
          const w = Tensor.from(row, [1, row.length]);
          const learned = { w, clip: undefined, offset: undefined };
          const found = quantizerOf({ numbers }).codes(new Map([["w", learned]]), SCHEME);
          const { codes, scale, global } = found.get("w") as QuantizedWeight;
          return {
            codes: Uint8Array.from(codes.read() as Uint8Array),
            scales: scale.floats(),
            global: global ? global.item() : null,
          };
        });
        const scaleBytes = bytesOfScales(made.scales, numbers);
        const grid = { numbers, group, ...made, scaleBytes, input: null, rows: 1, columns: 96 };
        const packed = read(floatTensors(grid, layout), floatDescription(numbers, layout), [1, 96]);
        const values = valuesOf(packed);
        const g = packed.global?.scale ?? 1;
        // Half of the widest gap between codes, and what the scale's rounding leaves beyond the last.
        for (const [i, x] of row.entries()) {
          const at = Math.floor(i / group);
          const step = (made.scales[at] as number) / g;
          const most = row
            .slice(at * group, (at + 1) * group)
            .reduce((m, y) => Math.max(m, Math.abs(y)), 0);
          expect(Math.abs(x - (values[i] as number))).toBeLessThanOrEqual(step + most / 4);
        }
        expect(values).toEqual([
          ...floatMatrix({ ...grid, global: packed.global?.scale ?? null }, 96),
        ]);
      }),
      { numRuns: 15 },
    );
  });
});

describe("what does not fit is refused", () => {
  const [grid] = fc.sample(grids("nvfp4"), { numRuns: 1, seed: 3 }) as [FloatGrid];
  const [rows, columns] = [grid.rows, grid.columns];
  const good = floatTensors({ ...grid, input: 7 }, "compressed-tensors");
  const config = floatDescription("nvfp4", "compressed-tensors", true);

  it("by the tensor's name", () => {
    const refuse = (change: Tensors, ...parts: string[]): void => {
      const act = (): unknown => read({ ...good, ...change }, config, [rows, columns]);
      expectAqError(act, "AQ_FORMAT", ...parts);
    };
    const scales = (byte: number): Tensors => {
      const list = [...grid.scaleBytes];
      list[1] = byte;
      return { weight_scale: bytes(list, "F8_E4M3", [rows, columns / 16]) };
    };
    refuse({ weight_packed: { ...good["weight_packed"]!, dtype: "I8" } });
    refuse(scales(0x7f), '"p.weight_scale"', "scales of NVFP4", "0x7f at index 1");
    refuse(scales(0xb8), '"p.weight_scale"', "0xb8");
    const wrongType = { weight_scale: { ...good["weight_scale"]!, dtype: "U8" } };
    refuse(wrongType, '"p.weight_scale"', "F8_E4M3");
    for (const x of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 1e-45]) {
      const part = { weight_global_scale: single(x, [1]) };
      refuse(part, '"p.weight_global_scale"', "a finite number above 0");
    }
    refuse({ input_global_scale: single(0, [1]) }, '"p.input_global_scale"', "above 0");
    const two = { ...single(1, [2]), bytes: new Uint8Array(8) };
    refuse({ weight_global_scale: two }, '"p.weight_global_scale"', "[2]");
    const { weight_global_scale: _, ...without } = good;
    const missing = (): unknown => read(without, config, [rows, columns]);
    expectAqError(missing, "AQ_MODEL", '"p.weight_global_scale"');
    const { input_global_scale: __, ...open } = good;
    const noInput = (): unknown => read(open, config, [rows, columns]);
    expectAqError(noInput, "AQ_MODEL", '"p.input_global_scale"');
  });

  it("when groups do not divide its rows", () => {
    const act = (): unknown => read(good, config, [rows, columns + 8]);
    expectAqError(act, "AQ_FORMAT", '"p.weight_packed"', "groups of 16 divide");
  });

  it.each<[string, object, string]>([
    ["bits", { num_bits: 8 }, "floats of 8 bits"],
    ["a group", { group_size: 32 }, "groups of 32"],
    ["a strategy", { strategy: "group" }, 'strategy "group"'],
    ["an asymmetric grid", { symmetric: false }, "asymmetric floats"],
    ["dynamic weights", { dynamic: true }, '"dynamic" true'],
    ["integers", { type: "int" }, 'type "int"'],
  ])("with a description of %s of others", (_, change, part) => {
    const json = structuredClone(config) as {
      config_groups: { group_0: { weights: object } };
    };
    Object.assign(json.config_groups.group_0.weights, change);
    const act = (): unknown => read(good, json, [rows, columns]);
    expectAqError(act, "AQ_MODEL", "config.json", part);
  });

  it.each<[object, string]>([
    [{ quant_algo: "FP8" }, '"quant_algo" "FP8"'],
    [{ quant_algo: "MIXED_PRECISION" }, "MIXED_PRECISION"],
    [{ group_size: 32 }, "groups of 32"],
    [{ kv_cache_scheme: { num_bits: 8, type: "float" } }, "KV cache"],
  ])("of ModelOpt: %j", (change, part) => {
    const json = { ...floatDescription("nvfp4", "modelopt", true), ...change };
    const tensors = floatTensors({ ...grid, input: 7 }, "modelopt");
    const act = (): unknown => read(tensors, json, [rows, columns]);
    expectAqError(act, "AQ_MODEL", part, "it reads");
  });
});
