// Bits per weight: counted by hand for a small model, and what is kept apart.
import { describe, expect, it } from "vitest";
import { schemeOf } from "../lib/quant/presets.ts";
import { countBits } from "../lib/report/bits.ts";
import { TRAINED, tinyFixture, withModel } from "./helpers/fixture.ts";

const scheme = { wbits: 4, abits: 16, groupSize: 0, symmetric: false };

describe("bits per weight", () => {
  it("are codes, float16 scales and zeros as wide as codes", () => {
    withModel(TRAINED, ({ checkpoint, model }) => {
      const bits = countBits(checkpoint, model, scheme);
      const { hidden: c, mlp: f, blocks, kvHeads, headDim } = model.shape;
      const kv = kvHeads * headDim;
      // Rows of q, k, v, o, gate, up, down: each has one scale and one zero.
      const rows = c + kv + kv + c + f + f + c;
      const weights = blocks * (c * c + 2 * kv * c + c * c + 3 * c * f);
      expect(bits.total.weights).toBe(weights);
      expect(bits.total.codeBits).toBe(4 * weights);
      expect(bits.total.scaleBits).toBe(16 * rows * blocks);
      expect(bits.total.zeroBits).toBe(4 * rows * blocks);
      expect(bits.bitsPerWeight).toBe(4 + (20 * rows * blocks) / weights);
      expect(bits.linears.map(({ linear }) => linear)).toEqual(model.linears.map(({ key }) => key));
    });
  });

  it("grow with smaller groups, the last of which may be short, and symmetric grids have no zeros", () => {
    withModel(TRAINED, ({ checkpoint, model }) => {
      const grouped = countBits(checkpoint, model, { ...scheme, groupSize: 64, wbits: 3 });
      const down = grouped.linears.find(({ linear }) => linear === "down");
      expect(model.shape.mlp % 64).toBe(0);
      expect(down?.bitsPerWeight).toBeCloseTo(3 + (16 + 3) / 64, 10);
      const uneven = countBits(checkpoint, model, { ...scheme, groupSize: 100 });
      const q = uneven.linears.find(({ linear }) => linear === "q");
      expect(q?.scaleBits).toBe(16 * 3 * model.shape.hidden * model.shape.blocks);
      const symmetric = countBits(checkpoint, model, { ...scheme, symmetric: true });
      expect(symmetric.total.zeroBits).toBe(0);
    });
  });

  it("leave embeddings, head, norms and biases apart, every tensor counted once", () => {
    for (const dir of [TRAINED, tinyFixture("untied"), tinyFixture("biases")]) {
      withModel(dir, ({ checkpoint, model }) => {
        const { rest, total, bitsPerParameter } = countBits(checkpoint, model, scheme);
        const all = [...checkpoint.tensors.values()].reduce(
          (sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1),
          0,
        );
        const kept = rest.reduce((sum, { parameters }) => sum + parameters, 0);
        expect(kept + total.weights, dir).toBe(all);
        expect(rest.some(({ name }) => name === "head")).toBe(!model.traits.tiedHead);
        expect(bitsPerParameter).toBeGreaterThan(4);
      });
    }
  });

  it("of 4-bit floats are a byte a group, and a float32 a matrix in NVFP4", () => {
    withModel(TRAINED, ({ checkpoint, model }) => {
      const of = (name: string) => countBits(checkpoint, model, schemeOf({ scheme: name }));
      const nvfp4 = of("NVFP4");
      const matrices = model.linears.length * model.shape.blocks;
      expect(nvfp4.total.scaleBits).toBe((8 * nvfp4.total.weights) / 16 + 32 * matrices);
      expect(nvfp4.total.zeroBits).toBe(0);
      expect(nvfp4.bitsPerWeight).toBeCloseTo(4.5, 3);
      expect(of("MXFP4A16").bitsPerWeight).toBe(4.25);
    });
  });

  it("of linears that are kept are those that they are stored in", () => {
    withModel(TRAINED, ({ checkpoint, model }) => {
      const plain = countBits(checkpoint, model, scheme);
      const down = plain.linears.find(({ linear }) => linear === "down");
      const kept = [
        new Set(["down", "q"]),
        new Set(["down"]),
        new Set(["down"]),
        new Set(["down"]),
      ];
      const some = countBits(checkpoint, model, scheme, { kept });
      const { hidden, mlp, blocks } = model.shape;
      expect(some.linears.map(({ linear }) => linear)).toEqual(["q", "k", "v", "o", "gate", "up"]);
      expect(some.kept).toEqual([
        { name: "q", parameters: hidden ** 2, bits: 16 * hidden ** 2 },
        { name: "down", parameters: blocks * mlp * hidden, bits: 16 * blocks * mlp * hidden },
      ]);
      expect(some.total.weights + (down?.weights ?? 0) + hidden ** 2).toBe(plain.total.weights);
      const bits = some.bitsPerWeight * plain.total.weights;
      const { codeBits, scaleBits, zeroBits } = some.total;
      expect(bits).toBeCloseTo(
        codeBits + scaleBits + zeroBits + 16 * (hidden ** 2 + blocks * mlp * hidden),
        3,
      );
      expect(some.bitsPerParameter).toBeGreaterThan(plain.bitsPerParameter);
    });
  });

  it("count matrices of the run time, and a head that is no longer tied", () => {
    withModel(TRAINED, ({ checkpoint, model }) => {
      const plain = countBits(checkpoint, model, scheme);
      const matrix = { name: "norm1 inverse", parameters: 256 ** 2, bits: 16 * 256 ** 2 };
      const more = countBits(checkpoint, model, scheme, { runtime: [matrix], untiedHead: true });
      const added = matrix.bits / plain.total.weights;
      expect(more.bitsPerWeight).toBeCloseTo(plain.bitsPerWeight + added, 10);
      expect(more.rest).toContainEqual({
        name: "head, tied in the source",
        parameters: model.shape.vocabulary * model.shape.hidden,
        bits: 16 * model.shape.vocabulary * model.shape.hidden,
      });
    });
  });
});
