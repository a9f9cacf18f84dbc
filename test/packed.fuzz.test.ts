// Descriptions, packed folders and GGUF files that somebody damaged or forged: each is read, or refused
// with one sentence, and takes no time either way.
import * as fs from "node:fs";
import * as path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { AqError } from "../lib/errors.ts";
import { readPackedConfig } from "../lib/packed/config.ts";
import { scalesOf } from "../lib/packed/float4.ts";
import { packedWeights } from "../lib/packed/open.ts";
import { takeApart } from "../lib/verify/gguf/blocks.ts";
import { GgufFile } from "../lib/verify/gguf/file.ts";
import { ggufBytes, type Pair, type PlainTensor } from "./helpers/gguf-file.ts";
import { mutate, mutations } from "./helpers/json-mutations.ts";
import {
  awq,
  awqConfig,
  compressedConfig,
  gptq,
  gptqConfig,
  intQuantized,
  own,
  ownConfig,
  type PlainGrid,
  packQuantized,
  type Tensors,
} from "./helpers/pack.ts";
import { type FloatGrid, floatDescription, floatTensors } from "./helpers/pack-floats.ts";
import { rawSafetensors, writeFiles } from "./helpers/safetensors-file.ts";
import { sharedFolders } from "./helpers/temp-folder.ts";

/** Longest processor time of one case. */
const MAX_MS = 1000;
const newFolder = sharedFolders();

/** Counts what became of the cases: all of one kind would mean that they miss their mark. */
class Tally {
  accepted = 0;
  refused = 0;
  readonly #isOurs: boolean;

  /** `isOurs`: messages must be short as well, and on one line. */
  constructor(isOurs = true) {
    this.#isOurs = isOurs;
  }

  run(read: () => void): void {
    const start = process.cpuUsage();
    try {
      read();
      this.accepted++;
    } catch (error) {
      if (!(error instanceof AqError)) throw error;
      expect(error.message).not.toMatch(/undefined|\[object/);
      if (this.#isOurs) expect(error.message).toMatch(/^[^\n]{10,700}$/);
      this.refused++;
    }
    expect(process.cpuUsage(start).user / 1000).toBeLessThan(MAX_MS);
  }

  expectBoth(): void {
    expect(this.accepted).toBeGreaterThan(0.01 * (this.accepted + this.refused));
    expect(this.refused).toBeGreaterThan(0.2 * (this.accepted + this.refused));
  }
}

const grid: PlainGrid = {
  bits: 4,
  rows: 8,
  columns: 16,
  group: 8,
  codes: Array.from({ length: 128 }, (_, i) => i % 16),
  scales: new Array<number>(16).fill(0.5),
  zeros: new Array<number>(16).fill(8),
};

const transforms = {
  config_groups: {
    s: {
      type: "random-hadamard",
      apply: [{ targets: ["p"], location: "input", inverse: false, ignore: [] }],
      head_dim: null,
    },
  },
};

const floats: FloatGrid = {
  ...{ numbers: "nvfp4", rows: 8, columns: 16, group: 16, global: 3, input: 7 },
  codes: Uint8Array.from(grid.codes),
  scaleBytes: Uint8Array.from({ length: 8 }, (_, i) => 40 + i),
};

const kinds: readonly [object, Tensors][] = [
  ...(["compressed-tensors", "modelopt", "aq"] as const).map((layout): [object, Tensors] => [
    floatDescription("nvfp4", layout, true),
    floatTensors(floats, layout),
  ]),
  [gptqConfig(grid, 2, { dynamic: { "-:.*down.*": {} } }), gptq(grid, 2)],
  [awqConfig(grid), awq(grid)],
  [compressedConfig(grid, "pack-quantized", false), packQuantized(grid, false)],
  [
    compressedConfig(grid, "pack-quantized", false, { transform_config: transforms }),
    packQuantized(grid, false),
  ],
  [compressedConfig(grid, "int-quantized", true), intQuantized(grid, true)],
  [ownConfig(grid), own(grid)],
];

describe("descriptions", () => {
  it("are read or refused", () => {
    const tally = new Tally();
    fc.assert(
      fc.property(fc.constantFrom(...kinds), mutations(), ([config], changes) => {
        const json = JSON.parse(mutate({ config }, changes)) as { config?: unknown } | null;
        const found = json?.config;
        if (typeof found !== "object" || found === null) return;
        tally.run(() => {
          const read = readPackedConfig(found as Record<string, unknown>, "config.json");
          expect(["gptq", "awq", "compressed-tensors", "aq", "floats"]).toContain(read.method);
        });
      }),
      { numRuns: 4000 },
    );
    tally.expectBoth();
  });
});

describe("packed folders", () => {
  it("are read or refused, whatever their headers and descriptions say", () => {
    const tally = new Tally(false);
    const dir = newFolder("fuzz");
    fc.assert(
      fc.property(fc.constantFrom(...kinds), mutations(), fc.boolean(), (kind, changes, where) => {
        const [config, tensors] = kind;
        let at = 0;
        const header: Record<string, unknown> = {};
        for (const [part, { dtype, shape, bytes }] of Object.entries(tensors)) {
          header[`p.${part}`] = { dtype, shape, data_offsets: [at, at + bytes.length] };
          at += bytes.length;
        }
        const data = Buffer.concat(Object.values(tensors).map(({ bytes }) => bytes));
        const description = { quantization_config: config };
        writeFiles(dir, {
          "config.json": where ? mutate(description, changes) : description,
          "model.safetensors": rawSafetensors(where ? header : mutate(header, changes), data),
        });
        tally.run(() => {
          const checkpoint = openCheckpoint(dir);
          try {
            const packed = packedWeights(checkpoint);
            const spec = { key: "p", name: "p.weight", shape: [8, 16] };
            if (!packed?.has(spec.name)) return;
            packed.check(spec);
            const linear = packed.read(spec);
            const { codes, group } = linear;
            const groups = 8 * Math.ceil(16 / group);
            expect(codes).toHaveLength(128);
            if (linear.kind === "integers") {
              expect([linear.scale.length, linear.zero.length]).toEqual([groups, groups]);
              expect(codes.every((q) => q < 2 ** linear.bits)).toBe(true);
            } else {
              expect(linear.scaleBytes).toHaveLength(groups);
              expect(scalesOf(linear).every((s) => s >= 0 && Number.isFinite(s))).toBe(true);
              expect(codes.every((q) => q < 16)).toBe(true);
            }
          } finally {
            checkpoint.close();
          }
        });
      }),
      { numRuns: 1000 },
    );
    tally.expectBoth();
  });
});

describe("GGUF files", () => {
  const pairs: readonly Pair[] = [
    ["general.architecture", 8, "llama"],
    ["general.alignment", 4, 32],
    ["a.u8", 0, 1],
    ["a.i16", 3, -2],
    ["a.f32", 6, 1.5],
    ["a.f64", 12, 2.5],
    ["a.bool", 7, true],
    ["a.u64", 10, 2n ** 63n],
    ["tokens", 9, [8, ["a", "b", "longer"]]],
    ["scores", 9, [6, [1, 2, 3]]],
  ];
  const random = (length: number): Uint8Array =>
    Uint8Array.from({ length }, (_, i) => (i * 37 + 11) & 255);
  const tensors: readonly PlainTensor[] = [
    { name: "norm", sizes: [5], type: 0, data: random(20) },
    { name: "q40", sizes: [64, 2], type: 2, data: random(72) },
    { name: "q41", sizes: [32, 3], type: 3, data: random(60) },
    { name: "q80", sizes: [32, 1], type: 8, data: random(34) },
    { name: "half", sizes: [3, 2], type: 1, data: random(12) },
  ];
  const whole = ggufBytes(pairs, tensors);
  const dataStart = whole.length - 352;

  function read(bytes: Uint8Array, dir: string): void {
    const file = path.join(dir, "x.gguf");
    fs.writeFileSync(file, bytes);
    const gguf = new GgufFile(file);
    try {
      let end = 0;
      for (const tensor of gguf.tensors.values()) {
        expect(tensor.offset).toBeGreaterThanOrEqual(end);
        end = tensor.offset + tensor.bytes;
        expect(end).toBeLessThanOrEqual(bytes.length);
        const data = gguf.read(tensor);
        expect(data).toHaveLength(tensor.bytes);
        if (tensor.type.startsWith("Q")) {
          const { codes } = takeApart(data, tensor.type as "Q4_0");
          expect(codes).toHaveLength(tensor.shape.reduce((a, b) => a * b, 1));
        }
      }
    } finally {
      gguf.close();
    }
  }

  it("come back as they were written", () => {
    const file = path.join(newFolder("gguf"), "x.gguf");
    fs.writeFileSync(file, whole);
    const gguf = new GgufFile(file);
    try {
      expect([...gguf.metadata]).toEqual(
        pairs.map(([key, type, value]) => [key, type === 9 ? (value as unknown[])[1] : value]),
      );
      expect(
        [...gguf.tensors.values()].map(({ name, shape, type }) => [name, shape, type]),
      ).toEqual([
        ["norm", [5], "F32"],
        ["q40", [2, 64], "Q4_0"],
        ["q41", [3, 32], "Q4_1"],
        ["q80", [1, 32], "Q8_0"],
        ["half", [2, 3], "F16"],
      ]);
      for (const { name, data } of tensors) {
        const found = gguf.tensors.get(name);
        expect([...gguf.read(found!)], name).toEqual([...data]);
      }
    } finally {
      gguf.close();
    }
  });

  it("are read or refused with any bytes changed, and cut anywhere", () => {
    const dir = newFolder("gguf");
    const tally = new Tally();
    const edges = fc.constantFrom<bigint>(
      0n,
      1n,
      31n,
      32n,
      2n ** 31n,
      2n ** 32n,
      2n ** 53n,
      2n ** 63n,
      2n ** 64n - 1n,
    );
    const change = fc.oneof(
      fc.record({ at: fc.nat(whole.length - 1), byte: fc.nat(255) }),
      fc.record({ at: fc.nat(dataStart), byte: fc.nat(255) }),
      fc.record({ at: fc.nat(dataStart - 8), wide: edges }),
    );
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 3 }),
        fc.option(fc.nat(whole.length), { freq: 4 }),
        (changes, end) => {
          const bytes = Buffer.from(whole);
          for (const each of changes) {
            if ("wide" in each) bytes.writeBigUInt64LE(each.wide, each.at);
            else bytes[each.at] = each.byte;
          }
          tally.run(() => read(bytes.subarray(0, end ?? bytes.length), dir));
        },
      ),
      { numRuns: 2500 },
    );
    tally.expectBoth();
  });

  it("are refused for what would mislead: overlaps, gaps, types and names that occur twice", () => {
    const dir = newFolder("gguf");
    const refuse = (bytes: Uint8Array, ...parts: readonly string[]): void => {
      try {
        read(bytes, dir);
      } catch (error) {
        expect(error).toBeInstanceOf(AqError);
        for (const part of parts) expect((error as Error).message).toContain(part);
        return;
      }
      throw new Error(`accepted, expected ${parts.join()}`);
    };
    const [norm, q40] = tensors as [PlainTensor, PlainTensor];
    refuse(ggufBytes(pairs, [norm, norm]), '"norm" twice');
    refuse(ggufBytes([...pairs, ["a.u8", 0, 1]], []), '"a.u8" twice');
    refuse(ggufBytes(pairs, [{ ...norm, type: 14 }]), '"norm"', "type 14");
    refuse(ggufBytes(pairs, [{ ...q40, sizes: [40, 2] }]), "Q4_0 [40, 2]");
    refuse(ggufBytes(pairs, [{ ...norm, sizes: [] }]), "0 dimensions");
    refuse(ggufBytes(pairs, [{ ...norm, data: random(200) }]), "unused bytes");
    refuse(ggufBytes(pairs, [{ ...norm, data: random(24) }]), "not zero", "padding");
    refuse(ggufBytes([["general.alignment", 4, 7]], []), "general.alignment");
    refuse(ggufBytes([["x", 9, [9, []]]], []), '"x" as an array of type 9');
    refuse(Buffer.from("GGUF"), "does not begin");
    const old = Buffer.from(whole);
    old.writeUInt32LE(2, 4);
    refuse(old, "version 2");
  });
});
