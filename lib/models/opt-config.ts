/** The configuration of an OPT checkpoint, checked. */

import { AqError } from "../errors.ts";
import { isJsonObject, kindOf } from "../util/json.ts";
import { checkSizes, MAX_COUNT, readBool, readInt, readWord, wrong } from "./config-keys.ts";

export interface OptConfig {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly mlp: number;
  readonly vocab: number;
  readonly maxTokens: number;
  readonly tiedHead: boolean;
  /** Biases of all linears. */
  readonly bias: boolean;
}

/**
 * Reads the config.json of an OPT model; what is absent has the value that transformers gives it.
 *
 * Throws: AQ_MODEL naming the key, what was expected and what was found. A norm after the residual
 * addition (opt-350m) is refused: its output also feeds the residual stream, so that nothing can be
 * folded into it exactly.
 */
export function readOptConfig(config: unknown): OptConfig {
  if (!isJsonObject(config)) {
    throw new AqError("AQ_FORMAT", `config.json holds ${kindOf(config)}, expected an object.`);
  }
  readWord(config, "activation_function", ["relu"], "relu");
  if (!readBool(config, "do_layer_norm_before", true)) {
    throw new AqError(
      "AQ_MODEL",
      'config.json: "do_layer_norm_before" is false (as in opt-350m): a norm after the residual addition feeds the residual stream too, so no transform can be folded into it; this model is not supported.',
    );
  }
  if (!readBool(config, "layer_norm_elementwise_affine", true)) {
    throw wrong("layer_norm_elementwise_affine", "true", false);
  }
  if (readBool(config, "_remove_final_layer_norm", false)) {
    throw wrong("_remove_final_layer_norm", "false", true);
  }
  const count = { min: 1, max: MAX_COUNT };
  const hidden = readInt(config, "hidden_size", count);
  const heads = readInt(config, "num_attention_heads", { min: 1, max: 1 << 16 });
  if (hidden % heads !== 0) {
    throw wrong("num_attention_heads", `a divisor of hidden_size (${hidden})`, heads);
  }
  const embedding = readInt(config, "word_embed_proj_dim", { ...count, default: hidden });
  if (embedding !== hidden) {
    throw wrong(
      "word_embed_proj_dim",
      `hidden_size (${hidden}); projected embeddings are not supported`,
      embedding,
    );
  }
  const mlp = readInt(config, "ffn_dim", count);
  const vocab = readInt(config, "vocab_size", count);
  const maxTokens = readInt(config, "max_position_embeddings", { ...count, default: 2048 });
  checkSizes(hidden, {
    hidden_size: hidden,
    ffn_dim: mlp,
    vocab_size: vocab,
    max_position_embeddings: maxTokens,
  });
  return {
    hidden,
    layers: readInt(config, "num_hidden_layers", { min: 1, max: 1 << 16 }),
    heads,
    mlp,
    vocab,
    maxTokens,
    tiedHead: readBool(config, "tie_word_embeddings", true),
    bias: readBool(config, "enable_bias", true),
  };
}
