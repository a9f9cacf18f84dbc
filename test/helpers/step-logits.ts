/** The logits of a decoder's step, as rows. */
import type { Decoder, StepToken } from "../../lib/generate/decoder.ts";

/** Those of the tokens at `wanted`, which is not empty. */
export async function stepLogits(
  decoder: Decoder,
  tokens: readonly StepToken[],
  wanted: readonly number[],
): Promise<readonly Float32Array[]> {
  const logits = decoder.step(tokens, wanted);
  if (!logits) throw new TypeError("a step without logits");
  try {
    const all = (await logits.readAsync()) as Float32Array;
    const { vocabulary } = decoder.model.shape;
    return wanted.map((_, n) => all.slice(n * vocabulary, (n + 1) * vocabulary));
  } finally {
    logits.dispose();
  }
}
