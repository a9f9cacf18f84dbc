// Ten thousand checkpoints that somebody damaged or forged: every reader either accepts one and gives
// what is safe to use, or refuses it with an AqError, and takes no time to do so. Nearly all cases are
// valid JSON, so that they pass the parser and meet the checks behind it.
import * as fs from "node:fs";
import * as path from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { readSafetensorsHeader } from "../lib/checkpoint/safetensors.ts";
import { parseHeader, type SafetensorsHeader } from "../lib/checkpoint/safetensors-header.ts";
import { AqError } from "../lib/errors.ts";
import { inspect } from "../lib/inspect.ts";
import { openModel } from "../lib/models/registry.ts";
import { TRAINED, tinyFixture, tinyFixtures } from "./helpers/fixture.ts";
import { mutate, mutations } from "./helpers/json-mutations.ts";

/** Longest processor time of one case; the largest of them has 50,000 characters. */
const MAX_MS = 1000;
const CASES = { header: 3500, file: 500, index: 2000, config: 3000, folder: 1000 };

let dir = "";
beforeAll(() => {
  dir = fs.mkdtempSync(path.join(process.env["TMPDIR"] ?? "/tmp", "aq-native-fuzz-"));
});
afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

/** Counts what became of the cases: all of one kind would mean that they miss their mark. */
class Tally {
  accepted = 0;
  refused = 0;

  /** Runs one case. Fails for any error but an AqError, and for one that took long. */
  run(read: () => void): void {
    const start = process.cpuUsage();
    try {
      read();
      this.accepted++;
    } catch (error) {
      if (!(error instanceof AqError)) throw error;
      expect(error.message).not.toMatch(/undefined|\[object/);
      this.refused++;
    }
    expect(process.cpuUsage(start).user / 1000).toBeLessThan(MAX_MS);
  }

  expectBoth(): void {
    expect(this.accepted).toBeGreaterThan(0.01 * (this.accepted + this.refused));
    expect(this.refused).toBeGreaterThan(0.2 * (this.accepted + this.refused));
  }
}

function readJson(file: string): object {
  return JSON.parse(fs.readFileSync(file, "utf8")) as object;
}

/** What passed the checks must be safe to read: whole tensors, inside the file, none over another. */
function expectSafe({ tensors, dataStart }: SafetensorsHeader, fileBytes: number): void {
  let end = dataStart;
  for (const { offset, bytes, shape } of tensors.values()) {
    expect(offset).toBe(end);
    expect(Number.isSafeInteger(bytes) && shape.every((d) => Number.isSafeInteger(d))).toBe(true);
    end += bytes;
  }
  expect(end).toBe(fileBytes);
}

describe("the reader of safetensors headers", () => {
  const whole = fs.readFileSync(path.join(tinyFixture("gqa"), "model.safetensors"));
  const length = Number(whole.readBigUInt64LE(0));
  const real = JSON.parse(whole.toString("utf8", 8, 8 + length)) as object;
  const dataBytes = whole.length - 8 - length;
  const small = {
    __metadata__: { format: "pt" },
    a: { dtype: "F16", shape: [2, 3], data_offsets: [0, 12] },
    b: { dtype: "F32", shape: [], data_offsets: [12, 16] },
    empty: { dtype: "I64", shape: [0, 5], data_offsets: [16, 16] },
    c: { dtype: "U8", shape: [8], data_offsets: [16, 24] },
  };

  it("accepts what is safe and refuses the rest", () => {
    const tally = new Tally();
    const source = fc.constantFrom<[object, number]>([small, 24], [small, 24], [real, dataBytes]);
    fc.assert(
      fc.property(source, mutations(), ([json, data], changes) => {
        const header = Buffer.from(mutate(json, changes), "utf8");
        const fileBytes = 8 + header.length + data;
        tally.run(() => expectSafe(parseHeader(header, fileBytes, "x"), fileBytes));
      }),
      { numRuns: CASES.header },
    );
    tally.expectBoth();
  });

  it("does so whatever the length before the header and the end of the file", () => {
    const tally = new Tally();
    const text = Buffer.from(JSON.stringify(small), "utf8");
    const size = fc.oneof(
      fc.integer({ min: -40, max: 40 }).map((n) => BigInt(Math.max(0, text.length + n))),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.constantFrom(0n, 1n, 99_999_999n, 100_000_000n, 100_000_001n, 2n ** 53n, 2n ** 63n),
    );
    const file = path.join(dir, "length.safetensors");
    fc.assert(
      fc.property(size, fc.integer({ min: -60, max: 8 }), (headerBytes, more) => {
        const bytes = Buffer.alloc(8 + text.length + 24 + 8);
        bytes.writeBigUInt64LE(headerBytes);
        text.copy(bytes, 8);
        const end = Math.max(0, 8 + text.length + 24 + more);
        fs.writeFileSync(file, bytes.subarray(0, end));
        const fd = fs.openSync(file, "r");
        try {
          tally.run(() => expectSafe(readSafetensorsHeader(fd, file), end));
        } finally {
          fs.closeSync(fd);
        }
      }),
      { numRuns: CASES.file, examples: [[BigInt(text.length), 0]] },
    );
    expect(tally.accepted).toBeGreaterThan(0);
    expect(tally.refused).toBeGreaterThan(CASES.file / 2);
  });
});

describe("the reader of a folder with an index", () => {
  it("opens it or refuses it, and never a file outside", () => {
    const folder = path.join(dir, "sharded");
    fs.cpSync(tinyFixture("sharded"), folder, { recursive: true });
    fs.copyFileSync(
      path.join(folder, "model-00003-of-00003.safetensors"),
      path.join(dir, "x.safetensors"),
    );
    const file = path.join(folder, "model.safetensors.index.json");
    const index = readJson(file);
    const tally = new Tally();
    fc.assert(
      fc.property(mutations(), (changes) => {
        fs.writeFileSync(file, mutate(index, changes));
        tally.run(() => {
          const checkpoint = openCheckpoint(folder);
          checkpoint.close();
          for (const shard of checkpoint.shards) {
            expect(path.dirname(path.join(folder, shard.file))).toBe(folder);
          }
        });
      }),
      { numRuns: CASES.index },
    );
    tally.expectBoth();
  });
});

const OPT = {
  model_type: "opt",
  architectures: ["OPTForCausalLM"],
  activation_function: "relu",
  do_layer_norm_before: true,
  enable_bias: true,
  ffn_dim: 128,
  hidden_size: 64,
  max_position_embeddings: 96,
  num_attention_heads: 4,
  num_hidden_layers: 2,
  vocab_size: 99,
  word_embed_proj_dim: 64,
  tie_word_embeddings: true,
  layer_norm_elementwise_affine: true,
  _remove_final_layer_norm: false,
  torch_dtype: "float16",
};

/** Of the tiny model "gqa". */
const PARAMETERS = 69_952;

describe("the readers of config.json", () => {
  const configs = [
    ...[TRAINED, ...tinyFixtures().map(tinyFixture)].map((folder) =>
      readJson(path.join(folder, "config.json")),
    ),
    OPT,
    OPT,
  ];

  it("give a model whose tensors can be named and addressed, or refuse", () => {
    const tally = new Tally();
    fc.assert(
      fc.property(
        fc.constantFrom(...configs),
        mutations(),
        fc.boolean(),
        (config, changes, has) => {
          const text = mutate(config, changes);
          tally.run(() => {
            const model = openModel(JSON.parse(text), () => has);
            const last = model.shape.blocks - 1;
            for (const { name, shape } of [
              ...model.outerTensors(),
              ...model.blockTensors(0),
              ...model.blockTensors(last),
            ]) {
              const bytes = shape.reduce((product, d) => product * d, 8);
              const isSound = shape.every((d) => d > 0) && Number.isSafeInteger(bytes);
              if (!isSound) throw new Error(`"${name}" has the shape [${shape.join(", ")}]`);
            }
          });
        },
      ),
      { numRuns: CASES.config },
    );
    tally.expectBoth();
  });

  it("are followed by a look at the tensors: a folder is inspected or refused", () => {
    const tally = new Tally();
    const folder = path.join(dir, "config");
    fs.cpSync(tinyFixture("gqa"), folder, { recursive: true });
    const file = path.join(folder, "config.json");
    const config = readJson(file);
    fc.assert(
      fc.property(mutations(), fc.nat(), fc.nat(3), (changes, at, broken) => {
        const text = mutate(config, changes);
        // One case in four also loses a character.
        const cut = at % text.length;
        fs.writeFileSync(file, broken === 0 ? text.slice(0, cut) + text.slice(cut + 1) : text);
        tally.run(() => expect(inspect({ model: folder }).parameters).toBe(PARAMETERS));
      }),
      { numRuns: CASES.folder },
    );
    tally.expectBoth();
  });
});
