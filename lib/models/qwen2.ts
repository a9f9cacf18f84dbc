/** Qwen 2 and 2.5: LLaMA's block with biases at q, k and v. */

import type { ModelFamily } from "./family.ts";
import { configObject, type RotaryConfig, readNever, readRotaryConfig } from "./rotary-config.ts";
import { openRotary } from "./rotary-model.ts";
import { qwenWindow } from "./sliding-window.ts";

export interface Qwen2Config extends RotaryConfig {
  readonly slidingWindow: number | null;
}

/** Throws: AQ_MODEL, AQ_FORMAT. */
export function readQwen2Config(json: unknown): Qwen2Config {
  const config = configObject(json);
  readNever(config, "mlp_bias", "qwen2");
  const read = readRotaryConfig(config, { maxTokens: 32_768, kvHeads: 32 });
  return { ...read, slidingWindow: qwenWindow(config, read.layers) };
}

export const qwen2: ModelFamily = {
  modelTypes: ["qwen2"],
  architecture: "Qwen2ForCausalLM",
  open(json, has, extras) {
    const config = readQwen2Config(json);
    const { slidingWindow } = config;
    const biased = ["q", "k", "v"];
    return openRotary({ family: "qwen2", config, biased, slidingWindow }, has, extras);
  },
};
