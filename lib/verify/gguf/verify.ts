/** A GGUF file against its run. */

import { AqError } from "../../errors.ts";
import type { TensorSpec } from "../../models/family.ts";
import { decodeFloats, encodeFloats, f16Bits, storedBits } from "../../packed/half.ts";
import { compareBits, compareNumbers, differs, type Place } from "../compare.ts";
import { dequantized, type OnTensor, type OuterValues } from "../folder.ts";
import { numbersOf, type SavedRun, type StateIntegers } from "../state.ts";
import type { Tally } from "../tally.ts";
import { BLOCK, takeApart } from "./blocks.ts";
import { GgufFile, type GgufTensor } from "./file.ts";
import { checkMetadata, ROPE_FACTORS, ropeFactors } from "./metadata.ts";
import { blockName, outerName, rowOrder } from "./names.ts";

/** Throws: AQ_FORMAT at the first difference, and what reading can throw. */
export async function verifyGguf(
  run: SavedRun,
  file: string,
  outer: OuterValues,
  tally: Tally,
  onTensor: OnTensor,
): Promise<void> {
  const gguf = new GgufFile(file);
  try {
    const { model } = run;
    checkMetadata(run, gguf);
    const check = new Check(run, gguf, tally);
    for (const spec of model.outerTensors()) {
      const name = outerName(spec);
      await onTensor(name);
      const values = outer(spec);
      if (values) check.plain(name, spec, values);
    }
    const factors = ropeFactors(run.output.config, model.shape.headDim);
    if (factors) check.ropeFactors(factors);
    for (let block = 0; block < model.shape.blocks; block++) {
      for (const spec of model.blockTensors(block)) {
        const name = blockName(block, spec);
        await onTensor(name);
        if (run.isLinear(spec.name)) check.linear(name, spec);
        else check.plain(name, spec, numbersOf(run.plain(spec)));
      }
    }
    check.complete();
  } finally {
    gguf.close();
  }
}

class Check {
  readonly #run: SavedRun;
  readonly #gguf: GgufFile;
  readonly #tally: Tally;
  readonly #explained = new Set<string>();

  constructor(run: SavedRun, gguf: GgufFile, tally: Tally) {
    this.#run = run;
    this.#gguf = gguf;
    this.#tally = tally;
  }

  /** A tensor of floats. */
  plain(name: string, spec: TensorSpec, values: Float32Array | Float64Array): void {
    const tensor = this.#find(name, spec.shape);
    this.#floats(tensor, spec, values);
    this.#tally.others++;
    this.#tally.values += values.length;
  }

  /** Factors of rotary embedding; computed, so that their last bits may differ. */
  ropeFactors(factors: readonly number[]): void {
    const tensor = this.#find(ROPE_FACTORS, [factors.length]);
    const place = this.#place(ROPE_FACTORS, "value");
    if (tensor.type !== "F32") throw differs(place, "", "F32", tensor.type);
    const got = decodeFloats(this.#gguf.read(tensor), "F32");
    for (const [i, x] of factors.entries()) {
      const y = got[i] as number;
      if (!(Math.abs(y - x) <= 1e-5 * x)) throw differs(place, `[${i}]`, String(x), String(y));
    }
    this.#tally.others++;
    this.#tally.values += factors.length;
  }

  linear(name: string, spec: TensorSpec): void {
    const state = this.#run.linear(spec);
    const tensor = this.#find(name, spec.shape);
    this.#tally.linears++;
    this.#tally.codes += state.codes.length;
    if (tensor.type === "F16" || tensor.type === "F32") {
      const formula = state.kind === "integers" ? "(code - zero) scale" : "value (scale / global)";
      this.#tally.note(
        `weights in ${tensor.type} are compared as ${formula}, rounded to ${tensor.type}`,
      );
      this.#floats(tensor, spec, dequantized(state));
      return;
    }
    if (state.kind !== "integers") {
      throw differs(this.#place(tensor.name, "its type"), "", "F16", tensor.type);
    }
    this.#blocks(tensor, tensor.type, spec, state);
    this.#tally.scales += state.scales.length;
    this.#tally.zeros += state.zeros.length;
  }

  /** No tensor is there that nothing of the run explains. */
  complete(): void {
    const stranger = [...this.#gguf.tensors.keys()].find((name) => !this.#explained.has(name));
    if (stranger !== undefined) {
      throw new AqError(
        "AQ_FORMAT",
        `"${stranger}" in ${this.#gguf.file} is no tensor of the run; export it again`,
      );
    }
  }

  #place(tensor: string, what: string): Place {
    return { tensor, path: this.#gguf.file, what };
  }

  #find(name: string, shape: readonly number[]): GgufTensor {
    const tensor = this.#gguf.tensors.get(name);
    if (!tensor) {
      throw new AqError(
        "AQ_FORMAT",
        `${this.#gguf.file} has no tensor "${name}", which the run's model has; export it again`,
      );
    }
    const isSame =
      tensor.shape.length === shape.length && shape.every((d, i) => d === tensor.shape[i]);
    if (!isSame) {
      const sizes = (list: readonly number[]): string => `[${list.join(", ")}]`;
      throw differs(this.#place(name, "its shape"), "", sizes(shape), sizes(tensor.shape));
    }
    this.#explained.add(name);
    return tensor;
  }

  #floats(tensor: GgufTensor, spec: TensorSpec, values: Float32Array | Float64Array): void {
    const { type } = tensor;
    const place = this.#place(tensor.name, "value");
    if (type !== "F16" && type !== "F32") throw differs(place, "", "F16 or F32", type);
    const [rows = 1, columns = 1] = spec.shape;
    const from = rowOrder(this.#run.model, spec.key);
    const ordered = new Float32Array(values.length);
    for (let row = 0; row < rows; row++) {
      const source = from(row) * columns;
      ordered.set(values.subarray(source, source + columns), row * columns);
    }
    const got = storedBits(this.#gguf.read(tensor), type);
    const expected = encodeFloats(ordered, type);
    compareBits(place, got, expected, type, spec.shape.length === 2 ? columns : 0);
  }

  /** Row after row: the block's step and offset, then its codes. */
  #blocks(
    tensor: GgufTensor,
    type: "Q4_0" | "Q4_1" | "Q8_0",
    spec: TensorSpec,
    state: StateIntegers,
  ): void {
    const { rows, columns, group, groups, codes, scaleBits, scales, zeros } = state;
    if (group < columns && group % BLOCK !== 0) {
      throw differs(
        this.#place(tensor.name, "its type"),
        "",
        `F16, since groups of ${group} columns fill no blocks of ${BLOCK}`,
        type,
      );
    }
    if (type === "Q4_1") {
      this.#tally.note("Q4_1: the offset of a block is compared as -zero scale, rounded to F16");
    }
    const from = rowOrder(this.#run.model, spec.key);
    const got = takeApart(this.#gguf.read(tensor), type);
    const perRow = columns / BLOCK;
    const wanted = {
      d: new Uint16Array(rows * perRow),
      m: new Uint16Array(rows * perRow),
      codes: new Int16Array(rows * columns),
    };
    for (let block = 0; block < rows * perRow; block++) {
      const row = Math.floor(block / perRow);
      const first = (block % perRow) * BLOCK;
      const g = from(row) * groups + Math.floor(first / group);
      const zero = zeros[g] as number;
      wanted.d[block] = scaleBits[g] as number;
      wanted.m[block] = f16Bits(Math.fround(-zero * (scales[g] as number)));
      const shift = { Q4_0: 8 - zero, Q4_1: 0, Q8_0: -zero }[type];
      const source = from(row) * columns + first;
      for (let j = 0; j < BLOCK; j++) {
        wanted.codes[block * BLOCK + j] = (codes[source + j] as number) + shift;
      }
    }
    compareNumbers(this.#place(tensor.name, "code"), got.codes, wanted.codes, columns);
    compareNumbers(this.#place(tensor.name, "scale (float16 bits)"), got.d, wanted.d, perRow);
    if (got.m)
      compareNumbers(this.#place(tensor.name, "offset (float16 bits)"), got.m, wanted.m, perRow);
  }
}
