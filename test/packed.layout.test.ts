// Every packed layout read back: the words that its exporters are known to write, and random grids of all
// widths, groups and odd shapes, packed by the plain code of helpers/pack.ts.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { dequantize, type PackedIntegers } from "../lib/packed/linear.ts";
import { scope } from "../lib/tensor/scope.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import {
  awq,
  awqConfig,
  awqWords,
  bitStream,
  compressedConfig,
  gptq,
  gptqConfig,
  groupsOf,
  halves,
  intQuantized,
  own,
  ownConfig,
  type PlainGrid,
  packQuantized,
  paddedStream,
  type Tensors,
  valuesOf,
  words,
} from "./helpers/pack.ts";
import { readLinear } from "./helpers/read-linear.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const newFolder = tempFolders();

/** Reads a linear called `p` back. */
function read(tensors: Tensors, config: object, shape: [number, number]): PackedIntegers {
  return readLinear(newFolder(), tensors, config, shape) as PackedIntegers;
}

function expectGrid(packed: PackedIntegers, grid: PlainGrid): void {
  expect([...packed.codes]).toEqual(grid.codes);
  expect([...packed.zero]).toEqual(grid.zeros);
  expect([...packed.scale]).toEqual(grid.scales);
  expect(packed).toMatchObject({ bits: grid.bits, group: grid.group, groupOf: null });
}

/** Grids of any width; `even`: rows and columns that fill words at every width. */
function grids(
  options: { bits?: number[]; even?: boolean; middle?: boolean; lowest?: number } = {},
): fc.Arbitrary<PlainGrid> {
  const { bits = [2, 3, 4, 8], even = false, middle = false, lowest = 0 } = options;
  const unit = even ? 32 : 1;
  const size = fc.integer({ min: 1, max: even ? 3 : 70 }).map((n) => n * unit);
  return fc
    .tuple(fc.constantFrom(...bits), size, size, fc.constantFrom(1, 8, 16, 32, 40, 1000), fc.nat())
    .map(([b, rows, columns, wish, seed]) => {
      const group = Math.min(wish, columns);
      const groups = Math.ceil(columns / group);
      let state = seed >>> 0;
      const below = (n: number): number => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * n);
      };
      const list = (n: number, next: () => number): number[] => Array.from({ length: n }, next);
      return {
        bits: b,
        rows,
        columns,
        group,
        codes: list(rows * columns, () => below(2 ** b)),
        scales: list(rows * groups, () => (1 + below(1024)) * 2 ** -14),
        zeros: list(rows * groups, () => (middle ? 2 ** (b - 1) : lowest + below(2 ** b - lowest))),
      };
    });
}

function roundTrip(
  arbitrary: fc.Arbitrary<PlainGrid>,
  write: (grid: PlainGrid) => Tensors,
  config: (grid: PlainGrid) => object,
): void {
  fc.assert(
    fc.property(arbitrary, (grid) => {
      expectGrid(read(write(grid), config(grid), [grid.rows, grid.columns]), grid);
    }),
    { numRuns: 40 },
  );
}

describe("known words", () => {
  const hex = (list: readonly number[]): string =>
    list.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  const upTo = (n: number, bits: number): number[] =>
    Array.from({ length: n }, (_, k) => k % 2 ** bits);
  /** One row whose codes a word stands for. */
  const codesOf = (list: number[], bits: number, columns: number): number[] => {
    const grid = { bits, rows: 1, columns, group: columns, codes: [], scales: [1], zeros: [0] };
    const tensors = {
      ...packQuantized({ ...grid, codes: upTo(columns, bits) }, true),
      weight_packed: words(list, [1, list.length]),
    };
    const config = compressedConfig(grid, "pack-quantized", true);
    return [...read(tensors, config, [1, columns]).codes];
  };

  it("of bit streams", () => {
    expect(codesOf([0x76543210], 4, 8)).toEqual(upTo(8, 4));
    expect(codesOf([0xe4e4e4e4], 2, 16)).toEqual(upTo(16, 2));
    expect(codesOf([0xff030201], 8, 4)).toEqual([1, 2, 3, 255]);
    expect(codesOf([0x88fac688, 0xc688fac6, 0xfac688fa], 3, 32)).toEqual(upTo(32, 3));
    expect(hex(bitStream(upTo(32, 3), 3))).toBe("88fac688 c688fac6 fac688fa");
  });

  it("of compressed-tensors before 0.18, ten 3-bit values in each", () => {
    const old = [0x08fac688, 0x1a23eb1a, 0x2c688fac, 0x0000003e];
    expect(codesOf(old, 3, 32)).toEqual(upTo(32, 3));
    expect(hex(paddedStream(upTo(32, 3), 3))).toBe("08fac688 1a23eb1a 2c688fac 0000003e");
  });

  it("of compressed-tensors' signed values", () => {
    // -8 .. -1 and 0 .. 7, moved up by 8.
    expect(codesOf([0x76543210], 4, 8).map((q) => q - 8)).toEqual([-8, -7, -6, -5, -4, -3, -2, -1]);
    expect(codesOf([0xfedcba98], 4, 8).map((q) => q - 8)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it("of AWQ's columns", () => {
    expect(hex(awqWords(upTo(8, 4)))).toBe("75316420");
    const grid = { bits: 4, rows: 8, columns: 1, group: 1, codes: [], scales: [], zeros: [] };
    const tensors = {
      qweight: words([0x75316420], [1, 1]),
      qzeros: words([0x75316420], [1, 1]),
      scales: halves([1, 1, 1, 1, 1, 1, 1, 1], [1, 8]),
    };
    const packed = read(tensors, awqConfig(grid), [8, 1]);
    expect([...packed.codes]).toEqual(upTo(8, 4));
    expect([...packed.zero]).toEqual(upTo(8, 4));
  });

  it("of symmetric zeros in both versions of GPTQ", () => {
    const known: [number, 1 | 2, number[]][] = [
      [4, 1, [0x77777777]],
      [3, 1, [0xdb6db6db, 0xb6db6db6, 0x6db6db6d]],
      [2, 1, [0x55555555]],
      [8, 1, [0x7f7f7f7f]],
      [4, 2, [0x88888888]],
      [3, 2, [0x24924924, 0x49249249, 0x92492492]],
      [2, 2, [0xaaaaaaaa]],
      [8, 2, [0x80808080]],
    ];
    for (const [bits, version, list] of known) {
      const rows = (list.length * 32) / bits;
      const codes = new Array<number>(rows * 32).fill(1);
      const scales = new Array<number>(rows).fill(1);
      const zeros = new Array<number>(rows).fill(2 ** (bits - 1));
      const grid = { bits, rows, columns: 32, group: 32, codes, scales, zeros };
      const tensors = { ...gptq(grid, version), qzeros: words(list, [1, list.length]) };
      expectGrid(read(tensors, gptqConfig(grid, version), [rows, 32]), grid);
    }
  });
});

describe("random grids come back", () => {
  it("from GPTQ, whose first version has no zero point 0", () => {
    roundTrip(
      grids({ even: true, lowest: 1 }),
      (grid) => gptq(grid, 1),
      (grid) => gptqConfig(grid, 1),
    );
  });

  it("from GPTQ version 2", () => {
    roundTrip(
      grids({ even: true }),
      (grid) => gptq(grid, 2),
      (grid) => gptqConfig(grid, 2),
    );
  });

  it("from AWQ", () => {
    const even = grids({ bits: [4], even: true });
    roundTrip(even, awq, (grid) => awqConfig(grid));
  });

  it("from compressed-tensors, packed, asymmetric", () => {
    roundTrip(
      grids({ bits: [2, 3, 4, 5, 6, 7, 8] }),
      (grid) => packQuantized(grid, false),
      (grid) => compressedConfig(grid, "pack-quantized", false),
    );
  });

  it("from compressed-tensors, packed, symmetric", () => {
    roundTrip(
      grids({ bits: [2, 3, 4, 5, 6, 7, 8], middle: true }),
      (grid) => packQuantized(grid, true),
      (grid) => compressedConfig(grid, "pack-quantized", true),
    );
  });

  it("from compressed-tensors of old, with gaps", () => {
    roundTrip(
      grids({ bits: [3, 5, 6, 7] }),
      (grid) => packQuantized(grid, false, paddedStream),
      (grid) => compressedConfig(grid, "pack-quantized", false, { version: "0.17.1" }),
    );
  });

  it("from compressed-tensors, a byte for each value", () => {
    roundTrip(
      grids({ bits: [4, 8] }),
      (grid) => intQuantized(grid, false),
      (grid) => compressedConfig(grid, "int-quantized", false),
    );
  });

  it("from our own", () => {
    roundTrip(grids({ bits: [2, 3, 4, 5, 6, 7, 8] }), (grid) => own(grid), ownConfig);
    roundTrip(
      grids({ bits: [2, 3, 4, 5, 6, 7, 8] }).map((grid) => ({
        ...grid,
        zeros: grid.zeros.map((z) => 3 * z - 100),
      })),
      (grid) => own(grid, true),
      ownConfig,
    );
  });

  it("with groups in act order", () => {
    fc.assert(
      fc.property(grids({ even: true }), fc.array(fc.nat(), { minLength: 96 }), (grid, picks) => {
        const order = Array.from(
          { length: grid.columns },
          (_, i) => (picks[i] as number) % groupsOf(grid),
        );
        const config = gptqConfig(grid, 2, { desc_act: true });
        const packed = read(gptq(grid, 2, order), config, [grid.rows, grid.columns]);
        expect([...packed.codes]).toEqual(grid.codes);
        const w = scope(() => ({ values: dequantize(packed).floats() })).values;
        expect([...w].map((x) => x + 0)).toEqual(valuesOf(grid, order).map((x) => x + 0));
      }),
      { numRuns: 20 },
    );
  });
});

describe("the matrix that they stand for", () => {
  it("is (q - z) s in float32", () => {
    fc.assert(
      fc.property(grids(), (grid) => {
        const packed = read(own(grid), ownConfig(grid), [grid.rows, grid.columns]);
        const w = scope(() => ({ values: dequantize(packed).floats() })).values;
        expect([...w].map((x) => x + 0)).toEqual(valuesOf(grid).map((x) => x + 0));
      }),
      { numRuns: 20 },
    );
  });
});

describe("what does not fit is refused", () => {
  const [grid] = fc.sample(grids({ bits: [4], even: true }), { numRuns: 1, seed: 7 }) as [
    PlainGrid,
  ];
  const size: [number, number] = [grid.rows, grid.columns];

  it("by the tensor's name", () => {
    const good = gptq(grid, 2);
    const config = gptqConfig(grid, 2);
    const refuse = (change: Tensors, name: string, ...parts: string[]): void => {
      expectAqError(() => read({ ...good, ...change }, config, size), "AQ_FORMAT", name, ...parts);
    };
    refuse({ qweight: { ...good["qweight"]!, dtype: "F32" } }, '"p.qweight"', "I32", "F32");
    refuse({ qzeros: words([1], [1, 1]) }, '"p.qzeros"', "expected I32", "[1, 1]");
    refuse({ scales: halves([1], [1]) }, '"p.scales"', "a matrix");
    refuse({ g_idx: words(new Array(grid.columns).fill(99), [grid.columns]) }, '"p.g_idx"', "99");
    const infinite = new Array<number>(grid.scales.length).fill(2 ** 17);
    const { shape } = good["scales"]!;
    refuse({ scales: halves(infinite, shape) }, '"p.scales"', "finite", "Infinity at index 0");
    const { qzeros: _, ...without } = good;
    expectAqError(() => read(without, config, size), "AQ_MODEL", '"p.qzeros"');
    expectAqError(
      () => read(good, gptqConfig({ ...grid, bits: 8 }, 2), size),
      "AQ_FORMAT",
      "8 bits",
    );
  });

  it("when bits behind the last value are set", () => {
    const odd = {
      ...grid,
      rows: 1,
      columns: 3,
      group: 3,
      codes: [1, 2, 3],
      scales: [1],
      zeros: [8],
    };
    const good = packQuantized(odd, true);
    const config = compressedConfig(odd, "pack-quantized", true);
    expect([...read(good, config, [1, 3]).codes]).toEqual([1, 2, 3]);
    const stray = { ...good, weight_packed: words([0x1321], [1, 1]) };
    expectAqError(() => read(stray, config, [1, 3]), "AQ_FORMAT", '"p.weight_packed"', "behind");
  });

  it("when a value has more bits than the scheme, or a shape another size", () => {
    const wide = { ...grid, bits: 8, codes: grid.codes.map((q) => q + 100) };
    const bytes = intQuantized(wide, true);
    const config = compressedConfig(grid, "int-quantized", true);
    expectAqError(() => read(bytes, config, size), "AQ_FORMAT", '"p.weight"', "from -8 to 7");
    const packed = packQuantized(grid, true);
    const swapped = new Uint8Array(BigInt64Array.of(1n, 2n).buffer);
    expectAqError(
      () =>
        read(
          { ...packed, weight_shape: { dtype: "I64", shape: [2], bytes: swapped } },
          compressedConfig(grid, "pack-quantized", true),
          size,
        ),
      "AQ_FORMAT",
      '"p.weight_shape"',
      "1, 2",
    );
  });
});
