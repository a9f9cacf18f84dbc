/** Mistral: LLaMA's block without biases, in whose first version attention looks back through a window. */

import type { ModelFamily } from "./family.ts";
import { configObject, type RotaryConfig, readNever, readRotaryConfig } from "./rotary-config.ts";
import { openRotary } from "./rotary-model.ts";
import { mistralWindow } from "./sliding-window.ts";

export interface MistralConfig extends RotaryConfig {
  readonly slidingWindow: number | null;
}

/** Throws: AQ_MODEL, AQ_FORMAT. */
export function readMistralConfig(json: unknown): MistralConfig {
  const config = configObject(json);
  for (const key of ["attention_bias", "mlp_bias"]) readNever(config, key, "mistral");
  return {
    ...readRotaryConfig(config, { maxTokens: 131_072, kvHeads: 8 }),
    slidingWindow: mistralWindow(config),
  };
}

export const mistral: ModelFamily = {
  modelTypes: ["mistral"],
  architecture: "MistralForCausalLM",
  open(json, has, extras) {
    const config = readMistralConfig(json);
    const { slidingWindow } = config;
    return openRotary({ family: "mistral", config, biased: [], slidingWindow }, has, extras);
  },
};
