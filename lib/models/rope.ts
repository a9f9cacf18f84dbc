/** Rotary position embedding: its settings in a config.json, and the tables of cosines and sines. */

import { AqError } from "../errors.ts";
import type { JsonObject } from "../util/json.ts";
import { MAX_COUNT, readInt, readNumber, readObject, wrong } from "./config-keys.ts";

/** How the frequencies are changed to reach further than the model was first trained for. */
export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxTokens: number;
    };

export interface RopeSettings {
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
}

const THETA = { min: 1, max: 1e12 } as const;
const FACTOR = { min: 1, max: 1e6 } as const;

/**
 * Reads the settings in either spelling: `rope_parameters` with everything in it (transformers 5), or
 * `rope_theta` and `rope_scaling` (before).
 *
 * Throws: AQ_MODEL for a kind that is not supported, a bad number, or two spellings that differ.
 */
export function readRope(config: JsonObject): RopeSettings {
  const now = readObject(config, "rope_parameters");
  const before = readObject(config, "rope_scaling");
  const thetas = [now?.["rope_theta"], before?.["rope_theta"], config["rope_theta"]];
  const theta = pickTheta(thetas.filter((t) => t !== undefined && t !== null));
  const scalings = [now, before].flatMap((o, i) =>
    o ? [readScaling(o, i === 0 ? "rope_parameters" : "rope_scaling")] : [],
  );
  const [first, second] = scalings;
  if (first && second && JSON.stringify(first) !== JSON.stringify(second)) {
    throw new AqError(
      "AQ_MODEL",
      `config.json: "rope_parameters" says ${JSON.stringify(first)}, but "rope_scaling" says ${JSON.stringify(second)}; keep one of them.`,
    );
  }
  return { ropeTheta: theta, ropeScaling: first ?? { type: "default" } };
}

function pickTheta(found: readonly unknown[]): number {
  const theta = readNumber({ rope_theta: found[0] }, "rope_theta", { ...THETA, default: 10000 });
  for (const other of found) {
    if (other !== theta) throw wrong("rope_theta", `${theta} everywhere`, other);
  }
  return theta;
}

function readScaling(scaling: JsonObject, key: string): RopeScaling {
  const type = scaling["rope_type"] ?? scaling["type"] ?? "default";
  const partial = readNumber(scaling, "partial_rotary_factor", { min: 0, max: 1, default: 1 });
  if (partial !== 1) {
    throw new AqError(
      "AQ_MODEL",
      `config.json: "${key}" rotates a part of each head (partial_rotary_factor ${partial}), which is not supported.`,
    );
  }
  if (Object.values(scaling).some((v) => typeof v === "object" && v !== null)) {
    throw new AqError(
      "AQ_MODEL",
      `config.json: "${key}" differs between layers or bands, which is not supported; supported: default, linear and llama3 for all layers.`,
    );
  }
  switch (type) {
    case "default":
      return { type: "default" };
    case "linear":
      return { type: "linear", factor: readNumber(scaling, "factor", FACTOR) };
    case "llama3": {
      const lowFreqFactor = readNumber(scaling, "low_freq_factor", { min: 1e-6, max: 1e6 });
      const highFreqFactor = readNumber(scaling, "high_freq_factor", { min: 1e-6, max: 1e6 });
      if (highFreqFactor <= lowFreqFactor) {
        throw wrong("high_freq_factor", `above low_freq_factor (${lowFreqFactor})`, highFreqFactor);
      }
      return {
        type: "llama3",
        factor: readNumber(scaling, "factor", FACTOR),
        lowFreqFactor,
        highFreqFactor,
        originalMaxTokens: readInt(scaling, "original_max_position_embeddings", {
          min: 1,
          max: MAX_COUNT,
        }),
      };
    }
    default:
      throw new AqError(
        "AQ_MODEL",
        `config.json: "${key}" has the type ${JSON.stringify(type)}, which is not supported; supported: default, linear, llama3.`,
      );
  }
}

/**
 * Angle per position of each pair, rounded to float32 after every step, as the models were trained.
 *
 * Shapes: [D / 2]. Source: Su et al. 2021; the llama3 rule is that of Meta's Llama 3.1 release.
 */
export function inverseFrequencies(settings: RopeSettings, headDim: number): Float32Array {
  const f = Math.fround;
  const scaling = settings.ropeScaling;
  const result = new Float32Array(headDim / 2);
  for (let i = 0; i < result.length; i++) {
    const plain = f(1 / f(settings.ropeTheta ** f((2 * i) / headDim)));
    switch (scaling.type) {
      case "default":
        result[i] = plain;
        break;
      case "linear":
        result[i] = plain / scaling.factor;
        break;
      case "llama3":
        result[i] = stretchByWavelength(plain, scaling);
        break;
      default:
        scaling satisfies never;
    }
  }
  return result;
}

/**
 * Pairs that turn often within the original context keep their frequency, pairs that turn less than
 * `lowFreqFactor` times are slowed by `factor`, and those between go smoothly from one to the other.
 */
function stretchByWavelength(
  frequency: number,
  scaling: Extract<RopeScaling, { type: "llama3" }>,
): number {
  const f = Math.fround;
  const { factor, lowFreqFactor, highFreqFactor, originalMaxTokens } = scaling;
  const wavelength = f(f(2 * Math.PI) / frequency);
  if (wavelength < originalMaxTokens / highFreqFactor) return frequency;
  if (wavelength > originalMaxTokens / lowFreqFactor) return f(frequency / factor);
  const turns = f(originalMaxTokens / wavelength);
  const keep = f(f(turns - lowFreqFactor) / f(highFreqFactor - lowFreqFactor));
  const slowed = f(f(f(1 - keep) * frequency) / factor);
  return f(slowed + f(keep * frequency));
}

/**
 * Cosines and sines of the angles of positions 0 .. T-1; element i of a position belongs to the pair
 * (i, i + D/2) of a head.
 *
 * Shapes: both [T, D / 2].
 */
export function ropeTables(
  config: RopeSettings & { readonly headDim: number },
  tokens: number,
): { cos: Float32Array; sin: Float32Array } {
  const frequencies = inverseFrequencies(config, config.headDim);
  const half = frequencies.length;
  const cos = new Float32Array(tokens * half);
  const sin = new Float32Array(tokens * half);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < half; i++) {
      // The angle is rounded first: at position 100,000 that is what moves the last digits.
      const angle = Math.fround(t * (frequencies[i] as number));
      cos[t * half + i] = Math.cos(angle);
      sin[t * half + i] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
