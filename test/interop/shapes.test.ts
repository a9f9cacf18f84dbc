// GGUF files of random models, each with one feature of its own: biases, heads of another size, rotary
// frequencies that are scaled, a head that is not tied, rows that fill no block, and the families that
// llama.cpp has an architecture of its own for. Their probabilities in llama.cpp are ours.
import * as path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { quantize } from "../../lib/index.ts";
import { tinyFixtures } from "../helpers/fixture.ts";
import { sharedFolders } from "../helpers/temp-folder.ts";
import { TINY_TOKENS, withTokenizer } from "../helpers/tiny-tokenizer.ts";
import { openGguf } from "./llama-cpp.ts";
import { distance, logits, say, withOurs } from "./ours.ts";

/** llama.cpp rounds what a product reads: to F16 before F16, to 8 bits in blocks of 32 before codes. */
const HALF = 3e-3;
const BLOCKS = 0.05;

/** llama.cpp leaves its biases out, and so the writer refuses it (test/formats.refusals.test.ts). */
const REFUSED = "qwen3-biases";

const folder = sharedFolders();
const apart: string[] = [];

afterAll(() => say(`log-probabilities of random models, F16 and 4 bits: ${apart.join(", ")}`));

/** Ids of all kinds in no order, as far as the model can see. */
function someIds(tokens: number): number[] {
  return Array.from({ length: tokens }, (_, i) => (i * i * 7 + i * 13 + 5) % TINY_TOKENS.length);
}

describe("a random model in llama.cpp gives our probabilities", () => {
  it.each(tinyFixtures().filter((name) => name !== REFUSED))("%s", async (name) => {
    const { model, calib } = withTokenizer(folder(name), name);
    const out = path.join(path.dirname(model), "out");
    await quantize({
      model,
      out,
      calib,
      nsamples: 2,
      seqlen: 32,
      wbits: 4,
      groupSize: 32,
      recipe: "rtn",
      device: "cpu",
      format: ["aq", "gguf", "gguf-f16"],
    });
    // What --out itself holds is rounded to the dtype of the model; here are the codes.
    const { ours, ids } = await withOurs(path.join(out, "aq-packed"), (source) => {
      const ids = someIds(Math.min(source.model.shape.maxTokens, 300));
      return { ids, ours: logits(source, ids) };
    });
    const far: number[] = [];
    for (const format of ["gguf-f16", "gguf"]) {
      const gguf = await openGguf(path.join(out, format, "model.gguf"), 512);
      expect(gguf.warnings).toEqual([]);
      far.push(distance(ours, await gguf.probabilities(ids)));
      await gguf.close();
    }
    apart.push(`${name} ${far.map((x) => x.toExponential(1)).join(" ")}`);
    const [half, blocks] = far as [number, number];
    expect(half).toBeLessThan(HALF);
    expect(blocks).toBeLessThan(BLOCKS);
  });
});
