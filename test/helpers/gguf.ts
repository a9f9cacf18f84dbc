/** GGUF files of synthetic runs, opened by the hub's own parser, their blocks taken apart by hand. */
import * as fs from "node:fs";
import * as path from "node:path";
import { gguf } from "@huggingface/gguf";
import { expect } from "vitest";
import { exportRun } from "../../lib/export-run.ts";
import type { ExportResult, FormatName } from "../../lib/export-types.ts";
import { F16, halfFromBits } from "./half.ts";
import {
  SMALL_SHAPE,
  type SyntheticLinear,
  type SyntheticRun,
  type SyntheticSettings,
  syntheticRun,
} from "./synthetic-run.ts";
import { sharedFolders } from "./temp-folder.ts";

interface Info {
  readonly shape: readonly number[];
  readonly dtype: number;
  readonly offset: number;
}

export interface Exported {
  readonly run: SyntheticRun;
  readonly result: ExportResult;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, Info>;
  /** Bytes of a tensor, from its place to at least its end. */
  readonly bytes: (name: string) => Buffer;
}

/** Writes runs as GGUF, in folders that are removed when the file's tests are over. */
export function ggufWriter(): (
  settings: SyntheticSettings,
  format?: FormatName,
) => Promise<Exported> {
  const folder = sharedFolders();
  return (settings, format = "gguf") => write(folder("gguf"), settings, format);
}

async function write(
  temp: string,
  settings: SyntheticSettings,
  format: FormatName,
): Promise<Exported> {
  const [dir, out] = [path.join(temp, "run"), path.join(temp, "out")];
  const run = syntheticRun(dir, settings);
  const result = await exportRun({ run: dir, format, out });
  expect(result.verified.linears).toBe(run.linears.length);
  const file = path.join(out, "model.gguf");
  const parsed = await gguf(file, { allowLocalFile: true });
  const all = fs.readFileSync(file);
  const tensors = new Map(
    parsed.tensorInfos.map(({ name, shape, dtype, offset }) => [
      name,
      { shape: shape.map(Number), dtype, offset: Number(parsed.tensorDataOffset) + Number(offset) },
    ]),
  );
  const bytes = (name: string): Buffer => all.subarray((tensors.get(name) as Info).offset);
  const metadata = parsed.metadata as unknown as Record<string, unknown>;
  return { run, result, metadata, tensors, bytes };
}

const NAMES: Readonly<Record<string, string>> = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
};

export function ggufName(name: string): string {
  const [, block = "", linear = "", end = ""] =
    /^model\.layers\.(\d+)\.(.*)\.(weight|bias)$/.exec(name) ?? [];
  return `blk.${block}.${NAMES[linear]}.${end}`;
}

const TYPES = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q8_0: 8 } as const;

/** Value j of a block that begins at a byte, as ggml computes it. */
function blockValue(bytes: Buffer, at: number, j: number, type: "Q4_0" | "Q4_1" | "Q8_0"): number {
  const half = (offset: number): number => halfFromBits(bytes.readUInt16LE(at + offset), F16);
  const nibble = (start: number): number =>
    ((bytes[at + start + (j % 16)] as number) >> (j < 16 ? 0 : 4)) & 15;
  switch (type) {
    case "Q4_0":
      return (nibble(2) - 8) * half(0);
    case "Q4_1":
      return nibble(4) * half(0) + half(2);
    case "Q8_0":
      return bytes.readInt8(at + 2 + j) * half(0);
  }
}

/** The whole matrix of a linear, its rows in the order of the checkpoint. */
export function weightsOf(
  { bytes, tensors }: Exported,
  { name, rows, columns }: SyntheticLinear,
  type: keyof typeof TYPES,
  headDim: number,
  isPaired = true,
): Float64Array {
  const info = tensors.get(ggufName(name));
  expect(info, name).toMatchObject({ dtype: TYPES[type], shape: [columns, rows] });
  const data = bytes(ggufName(name));
  const size = { F32: 128, F16: 64, Q4_0: 18, Q4_1: 20, Q8_0: 34 }[type];
  const w = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    // llama.cpp's row 2 j + t of a head is row t D/2 + j of the checkpoint's.
    const within = row % headDim;
    const from =
      isPaired && /[qk]_proj/.test(name)
        ? row - within + (within % 2) * (headDim / 2) + (within >> 1)
        : row;
    for (let i = 0; i < columns; i++) {
      const at = row * columns + i;
      w[from * columns + i] =
        type === "F16"
          ? halfFromBits(data.readUInt16LE(2 * at), F16)
          : blockValue(data, Math.floor(at / 32) * size, at % 32, type as "Q4_0");
    }
  }
  return w;
}

/** Exactly these; much faster than comparing arrays. */
export function expectNumbers(got: Float64Array, expected: Float64Array): void {
  const at = expected.findIndex((x, i) => got[i] !== x);
  expect({ at, got: got[at], length: got.length }).toEqual({
    at: -1,
    got: undefined,
    length: expected.length,
  });
}

export const EVERY = { ...SMALL_SHAPE, seed: 9 };

export function scalesOf({ scales }: SyntheticLinear): Float64Array {
  return Float64Array.from(scales, (bits) => halfFromBits(bits, F16));
}
