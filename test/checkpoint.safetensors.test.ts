import * as fs from "node:fs";
import * as path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readSafetensorsHeader, SafetensorsWriter } from "../lib/checkpoint/safetensors.ts";
import {
  parseHeader,
  SAFETENSORS_BYTES,
  type SafetensorsDType,
  type SafetensorsHeader,
  type TensorSpec,
} from "../lib/checkpoint/safetensors-header.ts";
import { AqError } from "../lib/errors.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { rawSafetensors } from "./helpers/safetensors-file.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();

function readHeader(file: string): SafetensorsHeader {
  const fd = fs.openSync(file, "r");
  try {
    return readSafetensorsHeader(fd, file);
  } finally {
    fs.closeSync(fd);
  }
}

function readBytes(bytes: Uint8Array): SafetensorsHeader {
  const file = path.join(tempFolder(), "x.safetensors");
  fs.writeFileSync(file, bytes);
  return readHeader(file);
}

const good = { a: { dtype: "F16", shape: [2, 3], data_offsets: [0, 12] } };

describe("reading a safetensors header", () => {
  it("gives every tensor its place, in the order of the bytes", () => {
    const header = { b: { dtype: "I8", shape: [], data_offsets: [12, 13] }, ...good };
    const { tensors, dataStart } = readBytes(rawSafetensors(header, new Uint8Array(13)));
    expect([...tensors.keys()]).toEqual(["a", "b"]);
    expect(tensors.get("b")).toEqual({
      name: "b",
      dtype: "I8",
      shape: [],
      offset: dataStart + 12,
      bytes: 1,
    });
  });

  it("accepts padding, metadata, empty tensors and names like __proto__", () => {
    const text = `{"__metadata__":{"format":"pt"},"__proto__":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}   `;
    const { tensors, metadata } = readBytes(rawSafetensors(text));
    expect(metadata).toEqual({ format: "pt" });
    expect(tensors.get("__proto__")?.bytes).toBe(0);
  });

  it("refuses files that are too short, cut, or something else", () => {
    const whole = rawSafetensors(good, new Uint8Array(12));
    expectAqError(() => readBytes(whole.subarray(0, 7)), "AQ_FILE", "has 7 bytes");
    expectAqError(() => readBytes(whole.subarray(0, 30)), "AQ_FILE", "only 22 follow");
    expectAqError(() => readBytes(whole.subarray(0, -1)), "AQ_FILE", '"a"', "it was cut");
    const gguf = Buffer.from("GGUF\x03\0\0\0\0\0\0\0");
    expectAqError(() => readBytes(gguf), "AQ_FORMAT", "this is not a safetensors file");
    const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    expectAqError(() => readBytes(Buffer.from(pointer)), "AQ_FILE", "git lfs pull");
    const huge = Buffer.alloc(64, 0xff);
    expectAqError(() => readBytes(huge), "AQ_FORMAT", "claims 18446744073709551615 bytes");
  });

  it.each<[string, string | object, string]>([
    ["no JSON", "{oops", "not valid JSON"],
    ["an array", "[]", 'does not begin with "{"'],
    ["a byte-order mark", `\ufeff${JSON.stringify(good)}`, 'does not begin with "{"'],
    ["a tensor that is no object", { a: 3 }, "got number 3"],
    ["an unknown dtype", { a: { ...good.a, dtype: "F17" } }, 'got "F17"'],
    ["an inherited name as dtype", { a: { ...good.a, dtype: "toString" } }, 'got "toString"'],
    ["a missing shape", { a: { dtype: "F16", data_offsets: [0, 12] } }, "a shape, as an array"],
    ["a negative size", { a: { ...good.a, shape: [-2, -3] } }, "got [-2,-3]"],
    ["a fractional size", { a: { ...good.a, shape: [1.5, 4] } }, "got [1.5,4]"],
    ["a shape that overflows", { a: { ...good.a, shape: [2 ** 40, 2 ** 40] } }, "addressed"],
    ["three offsets", { a: { ...good.a, data_offsets: [0, 12, 12] } }, "two non-negative"],
    ["offsets backwards", { a: { ...good.a, data_offsets: [12, 0] } }, "expected 12 bytes"],
    ["a length unlike the shape", { a: { ...good.a, data_offsets: [0, 10] } }, "[0, 10]"],
    ["metadata that are no strings", { __metadata__: { x: 1 }, ...good }, '__metadata__ "x"'],
    ["metadata that are no object", { __metadata__: [], ...good }, "__metadata__"],
    ["bytes of no tensor", { a: { dtype: "F16", shape: [5], data_offsets: [0, 10] } }, "describes"],
  ])("refuses %s", (_what, header, part) => {
    expectAqError(() => readBytes(rawSafetensors(header, new Uint8Array(12))), "AQ_FORMAT", part);
  });

  it("refuses overlaps, gaps, repeated names and bytes that are not UTF-8", () => {
    const u8 = (begin: number, end: number): object => ({
      dtype: "U8",
      shape: [end - begin],
      data_offsets: [begin, end],
    });
    const read = (header: string | object) => () =>
      readBytes(rawSafetensors(header, new Uint8Array(12)));
    expectAqError(read({ a: u8(0, 8), b: u8(7, 12) }), "AQ_FORMAT", 'Tensor "b"', 'overlaps "a"');
    expectAqError(read({ a: u8(0, 5), b: u8(5, 13) }), "AQ_FILE", '"b"', "the file has");
    expectAqError(read({ a: u8(0, 5), b: u8(7, 12) }), "AQ_FORMAT", "2 unused bytes");
    const twice = `{"a":${JSON.stringify(u8(0, 12))},"\\u0061":${JSON.stringify(u8(0, 12))}}`;
    expectAqError(read(twice), "AQ_FORMAT", 'names "a" twice');
    const bytes = rawSafetensors(good, new Uint8Array(12));
    bytes[10] = 0xff;
    expectAqError(() => readBytes(bytes), "AQ_FORMAT", "not valid UTF-8");
  });

  it("never fails with anything but an AqError, whatever the header says", () => {
    const value = fc.oneof(
      fc.constantFrom<unknown>(0, -1, 12, 2 ** 53, 1e308, null, "F16", "BOOL", [], {}, true),
      fc.json().map((text) => JSON.parse(text) as unknown),
      fc.array(fc.oneof(fc.nat(20), fc.integer()), { maxLength: 4 }),
    );
    const entry = fc.record(
      { dtype: value, shape: value, data_offsets: value },
      { requiredKeys: [] },
    );
    const header = fc.dictionary(
      fc.oneof(fc.constantFrom("a", "__metadata__", "__proto__"), fc.string()),
      fc.oneof(entry, value),
    );
    fc.assert(
      fc.property(header, fc.nat(64), (json, extra) => {
        const bytes = Buffer.from(JSON.stringify(json), "utf8");
        onlyAqErrors(() => parseHeader(bytes, 8 + bytes.length + extra, "x"));
      }),
      { numRuns: 400 },
    );
  });

  it("never fails with anything but an AqError on a good file with broken bytes", () => {
    const file = path.join(import.meta.dirname, "fixtures/tiny/gqa/model.safetensors");
    const whole = fs.readFileSync(file);
    const length = Number(whole.readBigUInt64LE(0));
    const change = fc.tuple(fc.nat(length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const header = Buffer.from(whole.subarray(8, 8 + length));
        for (const [at, byte] of changes) header[at] = byte;
        onlyAqErrors(() => {
          // What passes all checks must be safe to read.
          for (const t of parseHeader(header, whole.length, "x").tensors.values()) {
            expect(t.offset + t.bytes).toBeLessThanOrEqual(whole.length);
          }
        });
      }),
      { numRuns: 400 },
    );
  });
});

function onlyAqErrors(act: () => void): void {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(AqError);
  }
}

describe("writing a safetensors file", () => {
  const specs: TensorSpec[] = [
    { name: "w", dtype: "F32", shape: [2, 2] },
    { name: "empty", dtype: "F32", shape: [0] },
    { name: "7", dtype: "U8", shape: [3] },
  ];

  it("comes back as it was written, in pieces of any size", () => {
    const file = path.join(tempFolder(), "out.safetensors");
    const writer = new SafetensorsWriter(file, specs);
    writer.append(
      "w",
      Uint8Array.from({ length: 5 }, (_, i) => i),
    );
    writer.append(
      "w",
      Uint8Array.from({ length: 11 }, (_, i) => 5 + i),
    );
    expect(fs.existsSync(file)).toBe(false);
    writer.append("7", Uint8Array.of(7, 8, 9));
    writer.finish();
    expect(fs.readdirSync(path.dirname(file))).toEqual(["out.safetensors"]);
    const { tensors, metadata, dataStart } = readHeader(file);
    expect(dataStart % 8).toBe(0);
    expect(metadata).toEqual({ format: "pt" });
    expect([...tensors.values()].map(({ name, dtype, shape }) => ({ name, dtype, shape }))).toEqual(
      specs,
    );
    const data = fs.readFileSync(file).subarray(dataStart);
    expect([...data]).toEqual([...Array.from({ length: 16 }, (_, i) => i), 7, 8, 9]);
  });

  it("round-trips any list of tensors", () => {
    const dtype = fc.constantFrom(...(Object.keys(SAFETENSORS_BYTES) as SafetensorsDType[]));
    const shape = fc.array(fc.nat(4), { maxLength: 3 });
    const name = fc.string().filter((s) => s !== "__metadata__");
    const list = fc.uniqueArray(fc.record({ name, dtype, shape }), { selector: (t) => t.name });
    const file = path.join(tempFolder(), "out.safetensors");
    fc.assert(
      fc.property(list, (tensors) => {
        const writer = new SafetensorsWriter(file, tensors);
        for (const t of tensors) {
          const size = t.shape.reduce((a, b) => a * b, SAFETENSORS_BYTES[t.dtype] as number);
          writer.append(t.name, new Uint8Array(size).fill(1));
        }
        writer.finish();
        const read = [...readHeader(file).tensors.values()];
        const byName = new Map(read.map((t) => [t.name, t]));
        for (const t of tensors) expect(byName.get(t.name)).toMatchObject(t);
        expect(read).toHaveLength(tensors.length);
      }),
      { numRuns: 150 },
    );
  });

  it("leaves nothing behind when tensors come wrong or the caller gives up", () => {
    const dir = tempFolder();
    const start = (): SafetensorsWriter => new SafetensorsWriter(path.join(dir, "x"), specs);
    const one = new Uint8Array(1);
    expectAqError(() => start().append("7", one), "AQ_INTERNAL", 'expected "w", got "7"');
    expectAqError(() => start().append("w", new Uint8Array(17)), "AQ_INTERNAL", "17 bytes");
    expectAqError(() => start().finish(), "AQ_INTERNAL", '"w" is incomplete');
    start().abort();
    expect(fs.readdirSync(dir)).toEqual([]);
  });

  it("says what failed on the disk", () => {
    const dir = tempFolder();
    const file = path.join(dir, "missing", "x.safetensors");
    expectAqError(() => new SafetensorsWriter(file, specs), "AQ_FILE", file, "does not exist");
    const twice = [...specs, ...specs];
    expectAqError(() => new SafetensorsWriter(path.join(dir, "x"), twice), "AQ_FORMAT", "twice");
  });

  it.runIf(fs.existsSync("/dev/full"))("reports a full disk and removes the temporary file", () => {
    const dir = tempFolder();
    const file = path.join(dir, "x.safetensors");
    // The temporary name leads to a device on which every write fails as on a full disk.
    fs.symlinkSync("/dev/full", `${file}.tmp-${process.pid}`);
    expectAqError(() => new SafetensorsWriter(file, specs), "AQ_FILE", "the disk is full");
    expect(fs.readdirSync(dir)).toEqual([]);
  });
});
