/**
 * How far attention looks back, in the families where that may not be to the beginning. Only full attention
 * is computed here. Up to as many tokens as the window has both are the same, so a window bounds the
 * sequences that a model takes, and beyond it nothing is computed wrongly.
 */

import { AqError } from "../errors.ts";
import { type JsonObject, kindOf } from "../util/json.ts";
import { MAX_COUNT, readBool, readInt, wrong } from "./config-keys.ts";
import type { Model } from "./family.ts";

/** The window of both families where the key is absent. */
const USUAL_WINDOW = 4096;
/** The first layer with a window where Qwen's key is absent. */
const USUAL_FULL_LAYERS = 28;

const LAYER_TYPES = ["full_attention", "sliding_attention"] as const;

/** How long a sequence may be, and why where its positions are not the reason: part of a sentence. */
export function longestSequence({ shape, traits }: Pick<Model, "shape" | "traits">): string {
  const why = traits.slidingWindow === undefined ? "" : " (the window of its attention)";
  return `the model's maximum of ${shape.maxTokens} tokens${why}`;
}

/** Tokens that each layer of a Mistral sees, itself included; null: all. Throws: AQ_MODEL. */
export function mistralWindow(config: JsonObject): number | null {
  return readWindow(config);
}

/**
 * The same of Qwen's layers with a window, if any of `layers` has one. `sliding_window` alone, without
 * `use_sliding_window`, means nothing there. Throws: AQ_MODEL, also where keys contradict each other.
 */
export function qwenWindow(config: JsonObject, layers: number): number | null {
  const window = readBool(config, "use_sliding_window", false) ? readWindow(config) : null;
  const types = readLayerTypes(config, layers);
  if (window === null) {
    if (!types?.includes("sliding_attention")) return null;
    throw new AqError(
      "AQ_MODEL",
      'config.json: "layer_types" has sliding_attention, but there is no window: "use_sliding_window" must be true and "sliding_window" a number, or all layers full_attention.',
    );
  }
  const full = readInt(config, "max_window_layers", {
    min: 0,
    max: MAX_COUNT,
    default: USUAL_FULL_LAYERS,
  });
  const slides = types ? types.includes("sliding_attention") : full < layers;
  return slides ? window : null;
}

/** Absent it has a length of its own, and null says that there is none. */
function readWindow(config: JsonObject): number | null {
  if (config["sliding_window"] === null) return null;
  return readInt(config, "sliding_window", { min: 1, max: MAX_COUNT, default: USUAL_WINDOW });
}

function readLayerTypes(config: JsonObject, layers: number): readonly string[] | null {
  const value = config["layer_types"] ?? null;
  if (value === null) return null;
  const words = LAYER_TYPES.map((type) => `"${type}"`).join(" or ");
  if (!Array.isArray(value) || value.length !== layers) {
    throw wrong("layer_types", `a list of ${layers} times ${words}`, value);
  }
  const stranger = (value as unknown[]).find(
    (type) => !LAYER_TYPES.some((known) => known === type),
  );
  if (stranger === undefined) return value as string[];
  throw new AqError(
    "AQ_MODEL",
    `config.json: "layer_types" has ${kindOf(stranger)}, which is not supported; supported: ${words}.`,
  );
}
