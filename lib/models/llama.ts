/** LLaMA 1, 2, 3 and what says that it is one: biases where the configuration wants them. */

import { readBool } from "./config-keys.ts";
import type { ModelFamily } from "./family.ts";
import { configObject, type RotaryConfig, readRotaryConfig } from "./rotary-config.ts";
import { openRotary } from "./rotary-model.ts";

export interface LlamaConfig extends RotaryConfig {
  /** Biases of q, k, v and o. */
  readonly attentionBias: boolean;
  /** Biases of gate, up and down. */
  readonly mlpBias: boolean;
}

/** Throws: AQ_MODEL, AQ_FORMAT. */
export function readLlamaConfig(json: unknown): LlamaConfig {
  const config = configObject(json);
  return {
    ...readRotaryConfig(config, { maxTokens: 2048 }),
    attentionBias: readBool(config, "attention_bias", false),
    mlpBias: readBool(config, "mlp_bias", false),
  };
}

export const llama: ModelFamily = {
  modelTypes: ["llama"],
  architecture: "LlamaForCausalLM",
  open(json, has, extras) {
    const config = readLlamaConfig(json);
    const { attentionBias, mlpBias } = config;
    const biased = [
      ...(attentionBias ? ["q", "k", "v", "o"] : []),
      ...(mlpBias ? ["gate", "up", "down"] : []),
    ];
    return openRotary({ family: "llama", config, biased }, has, extras);
  },
};
