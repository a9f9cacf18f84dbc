/** Qwen 3: LLaMA's block with a norm over the features of each head between q, k and their rotation. */

import { readBool } from "./config-keys.ts";
import type { ModelFamily } from "./family.ts";
import { configObject, type RotaryConfig, readNever, readRotaryConfig } from "./rotary-config.ts";
import { openRotary } from "./rotary-model.ts";
import { qwenWindow } from "./sliding-window.ts";

export interface Qwen3Config extends RotaryConfig {
  /** Biases of q, k, v and o. */
  readonly attentionBias: boolean;
  readonly slidingWindow: number | null;
}

/** Throws: AQ_MODEL, AQ_FORMAT. */
export function readQwen3Config(json: unknown): Qwen3Config {
  const config = configObject(json);
  readNever(config, "mlp_bias", "qwen3");
  const read = readRotaryConfig(config, { maxTokens: 32_768, kvHeads: 32, headDim: 128 });
  return {
    ...read,
    attentionBias: readBool(config, "attention_bias", false),
    slidingWindow: qwenWindow(config, read.layers),
  };
}

export const qwen3: ModelFamily = {
  modelTypes: ["qwen3"],
  architecture: "Qwen3ForCausalLM",
  open(json, has, extras) {
    const config = readQwen3Config(json);
    const { attentionBias, slidingWindow } = config;
    const biased = attentionBias ? ["q", "k", "v", "o"] : [];
    const own = { family: "qwen3", config, biased, slidingWindow, headNorms: true };
    return openRotary(own, has, extras);
  },
};
