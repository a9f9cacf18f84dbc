// OPT against golden values that transformers computed in float32 on the same stored weights.
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { forwardLogits } from "../lib/eval/perplexity.ts";
import { inspect } from "../lib/inspect.ts";
import { readOptConfig } from "../lib/models/opt-config.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { withModel } from "./helpers/fixture.ts";
import { smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";
import { numbersOf, readTensors, tensorNamed } from "./helpers/tensor-file.ts";

const OPT = path.join("test", "fixtures", "opt-5m");
const tempFolder = tempFolders();

function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let apart = 0;
  let size = 0;
  for (let i = 0; i < b.length; i++) {
    apart += ((a[i] as number) - (b[i] as number)) ** 2;
    size += (b[i] as number) ** 2;
  }
  return Math.sqrt(apart / size);
}

describe("OPT", () => {
  it("has the logits and hidden states of transformers", () => {
    const live = liveTensors();
    const golden = readTensors(path.join(OPT, "golden.safetensors"));
    const value = (name: string) => numbersOf(tensorNamed(golden, name));
    const ids = Int32Array.from(value("input_ids"));
    const states: Float32Array[] = [];
    const logits = withModel(OPT, (source) =>
      forwardLogits(source, ids, (state) => states.push(state)),
    );
    expect(relativeError(logits, value("logits"))).toBeLessThan(1e-5);
    // The last golden state is the one after the final norm.
    for (let i = 0; i + 1 < states.length; i++) {
      expect(relativeError(states[i] as Float32Array, value(`hidden.${i}`))).toBeLessThan(1e-5);
    }
    expect(liveTensors()).toBe(live);
  });

  it("is told by inspect", () => {
    const { family, rope, attentionBias, sites } = inspect({ model: OPT });
    expect({ family, attentionBias }).toEqual({ family: "opt", attentionBias: true });
    expect(rope).toContain("learned positions");
    expect(sites.map(({ site }) => site)).toEqual([
      "updown",
      "norm.norm1",
      "norm.norm2",
      "vo",
      "qk-matrix",
    ]);
  });

  it.each([
    { change: { do_layer_norm_before: false }, says: "opt-350m" },
    { change: { word_embed_proj_dim: 128 }, says: "word_embed_proj_dim" },
    { change: { activation_function: "gelu" }, says: "activation_function" },
    { change: { num_attention_heads: 7 }, says: "num_attention_heads" },
    { change: { ffn_dim: "many" }, says: "ffn_dim" },
    { change: { layer_norm_elementwise_affine: false }, says: "layer_norm_elementwise_affine" },
  ])("refuses $change", ({ change, says }) => {
    const config = { hidden_size: 64, num_attention_heads: 4, ffn_dim: 128, vocab_size: 96 };
    const rest = { num_hidden_layers: 2, max_position_embeddings: 32 };
    expect(readOptConfig({ ...config, ...rest })).toMatchObject({ hidden: 64, mlp: 128 });
    expectAqError(() => readOptConfig({ ...config, ...rest, ...change }), "AQ_MODEL", says);
  });

  it.each([
    { recipe: "default", abits: 4 },
    { recipe: "affine", abits: 4 },
    { recipe: "default", abits: 16 },
  ] as const)("calibrates exactly: $recipe, A$abits", async ({ recipe, abits }) => {
    const { result } = await smallRun({
      model: OPT,
      out: tempFolder(),
      wbits: 3,
      abits,
      recipe,
      nsamples: 2,
    });
    for (const block of result.blocks) {
      expect(block.equivalence).toBeLessThan(1e-5);
      expect(block.fallback).toBeNull();
      expect(block.dominanceMargin).toBeGreaterThan(0);
    }
    expect(result.pplAfter).toBeGreaterThan(result.pplBefore);
    expect(result.pplAfter).toBeLessThan(10 * result.pplBefore);
  });
});
