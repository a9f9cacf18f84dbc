/**
 * The packed linears of a checkpoint, whatever their format: which there are, that their tensors fit, and
 * their codes. Checkpoints without any are none of this module's business.
 */

import type { Float4Name } from "../autograd/float4.ts";
import type { Checkpoint } from "../checkpoint/folder.ts";
import type { TensorSpec } from "../models/family.ts";
import { FLOAT4_GROUPS } from "../quant/scheme.ts";
import { awqParts, planAwq, readAwq } from "./awq.ts";
import { compressedParts, planCompressed, readCompressed } from "./compressed.ts";
import {
  findQuantization,
  type PackedConfig,
  readPackedConfig,
  type TokenScheme,
} from "./config.ts";
import type { FloatConfig } from "./config-floats.ts";
import { floatParts, hasFloats, planFloats, readFloats, readInput } from "./floats.ts";
import { gptqParts, planGptq, readGptq } from "./gptq.ts";
import type { PackedLinear } from "./linear.ts";
import { ownParts, planOwn, readOwn } from "./own.ts";
import { matrixName } from "./transforms.ts";

/** The packed linears of an open checkpoint. */
export interface PackedWeights {
  /** "gptq", "gptq_v2", "awq", "aq", "modelopt", or "compressed-tensors" with its variant. */
  readonly format: string;
  /** 4-bit floats, or null: whole numbers. */
  readonly numbers: Float4Name | null;
  /** Bits and group (0: one for a row) of most linears. */
  readonly bits: number;
  readonly group: number;
  readonly symmetric: boolean;
  /** How whoever runs it quantizes what linears read, or null. */
  readonly tokens: TokenScheme | null;
  /** The global scale of what the linear of this weight reads, or null. Throws: AQ_FORMAT, AQ_FILE. */
  input(weight: string): number | null;
  /** Name of the matrix that is applied before the linear of this weight, or null. */
  matrix(weight: string): string | null;
  /** Linears, without ".weight", before which a matrix is applied. */
  readonly transformed: readonly string[];
  /**
   * Matrices that stand for a tensor of the model, by its name: those before all linears behind a norm are
   * its residue. Filled in when the model is opened (model.ts).
   */
  readonly residues: Map<string, readonly string[]>;
  /** Is the weight of this name stored packed? */
  has(weight: string): boolean;
  /** Names of tensors that hold a packed weight, those that may be absent included. */
  parts(weight: string): readonly string[];
  /** Throws: AQ_MODEL, AQ_FORMAT when its tensors are missing or misshapen. */
  check(spec: TensorSpec): void;
  /** Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE. */
  read(spec: TensorSpec): PackedLinear;
}

const opened = new WeakMap<Checkpoint, PackedWeights | null>();

/**
 * The packed linears, or null for a checkpoint that has none.
 *
 * Throws: AQ_MODEL for a quantization that is not read here, AQ_FORMAT for a malformed description.
 */
export function packedWeights(checkpoint: Checkpoint): PackedWeights | null {
  const known = opened.get(checkpoint);
  if (known !== undefined) return known;
  const found = findQuantization(checkpoint);
  const packed = found && open(checkpoint, readPackedConfig(found.json, found.where));
  opened.set(checkpoint, packed);
  return packed;
}

/** What a checkpoint's description says that it is, for people, also where it is not read here. */
export function quantizationName(checkpoint: Checkpoint): string | null {
  const found = findQuantization(checkpoint);
  if (!found) return null;
  const { quant_method: method, bits } = found.json;
  const name = typeof method === "string" ? method.slice(0, 60) : "quantization_config";
  return typeof bits === "number" ? `${name}, ${bits} bits` : name;
}

type Extras = "matrix" | "transformed" | "residues" | "numbers" | "input";

/** What most formats do not have. */
function plainIntegers(): Pick<PackedWeights, Extras> {
  return {
    matrix: () => null,
    transformed: [],
    residues: new Map(),
    numbers: null,
    input: () => null,
  };
}

function open(checkpoint: Checkpoint, config: PackedConfig): PackedWeights {
  switch (config.method) {
    case "gptq":
      return {
        ...config,
        ...plainIntegers(),
        format: config.version === 2 ? "gptq_v2" : "gptq",
        tokens: null,
        has: (weight) => checkpoint.has(gptqParts(weight).codes),
        parts: (weight) => Object.values(gptqParts(weight)),
        check: (spec) => void planGptq(checkpoint, config, spec),
        read: (spec) => readGptq(checkpoint, config, spec),
      };
    case "awq":
      return {
        ...config,
        ...plainIntegers(),
        format: "awq",
        bits: 4,
        symmetric: false,
        tokens: null,
        has: (weight) => checkpoint.has(awqParts(weight).codes),
        parts: (weight) => Object.values(awqParts(weight)),
        check: (spec) => void planAwq(checkpoint, config, spec),
        read: (spec) => readAwq(checkpoint, config, spec),
      };
    case "aq":
      return {
        ...config,
        ...plainIntegers(),
        format: "aq",
        tokens: null,
        has: (weight) => checkpoint.has(ownParts(weight).codes),
        parts: (weight) => Object.values(ownParts(weight)),
        check: (spec) => void planOwn(checkpoint, config, spec),
        read: (spec) => readOwn(checkpoint, config, spec),
      };
    case "compressed-tensors": {
      const [{ bits, group, symmetric } = { bits: 0, group: 0, symmetric: true }] = config.weights;
      const isBytes = config.format === "int-quantized";
      return {
        ...plainIntegers(),
        bits,
        group,
        symmetric,
        format: `compressed-tensors, ${config.format}`,
        tokens: config.tokens,
        transformed: [...config.transforms.keys()],
        matrix: (weight) => {
          const scheme = config.transforms.get(weight.replace(/\.weight$/, ""));
          return scheme === undefined ? null : matrixName(weight, scheme);
        },
        has: (weight) => {
          const { bytes, codes } = compressedParts(weight);
          if (!isBytes) return checkpoint.has(codes);
          return checkpoint.has(bytes) && checkpoint.info(bytes).dtype === "I8";
        },
        parts: (weight) => Object.values(compressedParts(weight)),
        check: (spec) => void planCompressed(checkpoint, config, spec),
        read: (spec) => readCompressed(checkpoint, config, spec),
      };
    }
    case "floats":
      return openFloats(checkpoint, config);
  }
}

function openFloats(checkpoint: Checkpoint, config: FloatConfig): PackedWeights {
  const { layout, numbers, tokens } = config;
  const variant = layout === "modelopt" ? numbers.toUpperCase() : `${numbers}-pack-quantized`;
  return {
    ...plainIntegers(),
    bits: 4,
    group: FLOAT4_GROUPS[numbers],
    symmetric: true,
    numbers,
    format: layout === "aq" ? layout : `${layout}, ${variant}`,
    tokens: tokens ? { bits: 4, symmetric: true, numbers } : null,
    input: (weight) => readInput(checkpoint, config, weight)?.scale ?? null,
    has: (weight) => hasFloats(checkpoint, config, weight),
    parts: (weight) => Object.values(floatParts(config, weight)),
    check: (spec) => planFloats(checkpoint, config, spec),
    read: (spec) => readFloats(checkpoint, config, spec),
  };
}
