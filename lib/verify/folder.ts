/**
 * A Hugging Face folder against its run, packed or dequantized: every tensor in it must be there because
 * of the run, and hold what the run holds.
 */

import * as path from "node:path";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { AqError } from "../errors.ts";
import type { TensorSpec } from "../models/family.ts";
import { encodeFloats, storedBits } from "../packed/half.ts";
import type { PackedIntegers } from "../packed/linear.ts";
import { type PackedWeights, packedWeights } from "../packed/open.ts";
import { compareBits, compareNumbers, differs } from "./compare.ts";
import { compareFloats, floatValues } from "./floats.ts";
import {
  numbersOf,
  type PlainTensor,
  readPlain,
  type SavedRun,
  type StateIntegers,
  type StateLinear,
} from "./state.ts";
import type { Tally } from "./tally.ts";

/** Called before each tensor; throws when the work is to stop. */
export type OnTensor = (name: string) => Promise<void>;

/** Values of a tensor outside the blocks, or null where they cannot be known. */
export type OuterValues = (spec: TensorSpec) => Float32Array | Float64Array | null;

/** Throws: AQ_FORMAT at the first difference, and what reading can throw. */
export async function verifyFolder(
  run: SavedRun,
  folder: Checkpoint,
  outer: OuterValues,
  tally: Tally,
  onTensor: OnTensor,
): Promise<void> {
  const packed = packedWeights(folder);
  const explained = new Set<string>();
  const plain = (spec: TensorSpec, values: ReturnType<OuterValues>): void => {
    explained.add(spec.name);
    if (values) comparePlain(folder, spec, values, tally);
    else tally.note(`"${spec.name}" was not compared: the model it was made of is not at hand`);
  };
  for (const spec of run.model.outerTensors()) {
    await onTensor(spec.name);
    plain(spec, outer(spec));
  }
  for (const spec of run.blockSpecs()) {
    await onTensor(spec.name);
    const matrices = packed ? matricesOf(run, packed, spec) : [];
    if (matrices.length > 0) {
      const values = asMatrix(numbersOf(run.plain(spec)), spec.shape[0] as number);
      for (const name of matrices) plain({ ...spec, name }, values);
      tally.note("matrices behind norms are compared as sqrt(n) times their transpose, rounded");
    } else if (!run.isLinear(spec.name)) {
      plain(spec, numbersOf(run.plain(spec)));
    } else if (packed?.has(spec.name)) {
      for (const part of packed.parts(spec.name)) explained.add(part);
      compareLinear(folder, packed, spec, run.linear(spec), tally);
    } else {
      compareDequantized(folder, spec, run.linear(spec), tally);
      explained.add(spec.name);
    }
  }
  const stranger = [...folder.tensors.keys()].find((name) => !explained.has(name));
  if (stranger !== undefined) {
    throw new AqError(
      "AQ_FORMAT",
      `"${stranger}" in ${fileOf(folder, stranger)} is no tensor of the run; export it again`,
    );
  }
}

/** Matrices before linears that stand for a norm's residue. */
function matricesOf(run: SavedRun, packed: PackedWeights, { key, name }: TensorSpec): string[] {
  const reads = run.model.residual.reads.find(({ norm }) => key === `${norm}.residue`);
  if (!reads) return [];
  const block = run.blockOf(name);
  const weights = new Map(block.map((spec) => [spec.key, spec.name]));
  return reads.consumers.flatMap((linear) => packed.matrix(weights.get(linear) ?? "") ?? []);
}

/** sqrt(n) Rt. */
function asMatrix(residue: ArrayLike<number>, n: number): Float32Array {
  return Float32Array.from(
    { length: n * n },
    (_, at) => Math.sqrt(n) * (residue[(at % n) * n + Math.floor(at / n)] as number),
  );
}

function fileOf(folder: Checkpoint, name: string): string {
  return path.join(folder.dir, folder.info(name).file);
}

/** Codes, scales and zeros. */
function compareLinear(
  folder: Checkpoint,
  packed: PackedWeights,
  spec: TensorSpec,
  state: StateLinear,
  tally: Tally,
): void {
  const got = packed.read(spec);
  const place = (what: string) => ({ tensor: spec.name, path: folder.dir, what });
  tally.linears++;
  tally.codes += state.codes.length;
  if (got.kind !== "integers" && got.kind === state.kind) {
    compareFloats(got, state, place, packed.format !== "aq", tally);
    return;
  }
  if (got.kind !== "integers" || state.kind !== "integers") {
    throw differs(place("its numbers"), "", state.kind, got.kind);
  }
  checkGroups(got, state, place("groups"));
  compareNumbers(place("code"), got.codes, state.codes, state.columns);
  if (got.scaleType === "BF16") {
    tally.note("scales are compared as rounded to BF16, in which the file stores them");
  }
  const [found, scales] = [got.scale, state.scales].map((s) => encodeFloats(s, got.scaleType));
  compareBits(
    place("scale"),
    found as Uint16Array,
    scales as Uint16Array,
    got.scaleType,
    state.groups,
  );
  compareNumbers(place("zero"), got.zero, state.zeros, state.groups);
  // Servers do not read zeros that the description says are in the middle.
  const middle = 2 ** (got.bits - 1);
  const off = packed.symmetric ? state.zeros.findIndex((z) => z !== middle) : -1;
  if (off >= 0) {
    throw differs(place("the description"), "", "asymmetric weights", "symmetric ones");
  }
  tally.scales += state.scales.length;
  tally.zeros += state.zeros.length;
}

function checkGroups(
  got: PackedIntegers,
  state: StateIntegers,
  place: { tensor: string; path: string; what: string },
): void {
  const words = (group: number): string => `groups of ${group} columns`;
  if (got.groupOf) throw differs(place, "", words(state.group), "columns in act order");
  if (got.group !== state.group) throw differs(place, "", words(state.group), words(got.group));
}

/** A weight that is stored as what its codes stand for. */
function compareDequantized(
  folder: Checkpoint,
  spec: TensorSpec,
  state: StateLinear,
  tally: Tally,
): void {
  const { dtype } = readable(folder, spec);
  const formula = state.kind === "integers" ? "(code - zero) scale" : "value (scale / global)";
  tally.note(`weights stored dequantized are compared as ${formula}, rounded to ${dtype}`);
  comparePlain(folder, spec, dequantized(state), tally);
  tally.others--;
  tally.values -= state.codes.length;
  tally.linears++;
  tally.codes += state.codes.length;
}

/** (code - zero) scale in float32; of 4-bit floats value (scale / global). */
export function dequantized(state: StateLinear): Float32Array {
  if (state.kind !== "integers") return floatValues(state);
  const { rows, columns, group, groups } = state;
  const w = new Float32Array(rows * columns);
  for (let o = 0; o < rows; o++) {
    for (let g = 0; g < groups; g++) {
      const zero = state.zeros[o * groups + g] as number;
      const scale = state.scales[o * groups + g] as number;
      const end = o * columns + Math.min(columns, (g + 1) * group);
      for (let at = o * columns + g * group; at < end; at++) {
        w[at] = ((state.codes[at] as number) - zero) * scale;
      }
    }
  }
  return w;
}

function comparePlain(
  folder: Checkpoint,
  spec: TensorSpec,
  values: Float32Array | Float64Array,
  tally: Tally,
): void {
  const got = readable(folder, spec);
  const { dtype, bytes } = got;
  const columns = spec.shape.length === 2 ? (spec.shape[1] as number) : 0;
  const place = { tensor: spec.name, path: fileOf(folder, spec.name), what: "value" };
  if (dtype === "F64") {
    compareNumbers(place, new Float64Array(bytes.buffer), values, columns);
  } else {
    const expected = encodeFloats(Float32Array.from(values), dtype);
    compareBits(place, storedBits(bytes, dtype), expected, dtype, columns);
  }
  tally.others++;
  tally.values += values.length;
}

function readable(folder: Checkpoint, spec: TensorSpec): PlainTensor {
  const { shape } = folder.info(spec.name);
  if (shape.length !== spec.shape.length || shape.some((d, i) => d !== spec.shape[i])) {
    const place = { tensor: spec.name, path: fileOf(folder, spec.name), what: "its shape" };
    throw differs(place, "", `[${spec.shape.join(", ")}]`, `[${shape.join(", ")}]`);
  }
  return readPlain(folder, spec.name);
}
