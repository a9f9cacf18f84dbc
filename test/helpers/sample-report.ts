/** A report with made-up numbers, for tests that show it. */
import type { RunReport } from "../../lib/report/types.ts";
import type { BlockReport } from "../../lib/types.ts";

export function sampleBlock(block: number, change: Partial<BlockReport> = {}): BlockReport {
  return {
    block,
    lossFirst: 0.4,
    lossLast: 0.3,
    losses: { affine: [0.4, 0.35], round: [0.33, 0.3] },
    equivalence: 3e-7,
    equivalenceStored: 2e-4,
    dominanceMargin: 0.9,
    streamError: 0.05,
    skippedSteps: 0,
    fallback: null,
    seconds: 3,
    phaseSeconds: { statistics: 1, affine: 2 },
    ...change,
  };
}

/** Layers of a block as if it had two linears. */
export function sampleLayers(
  block: number,
  q: number,
  down: number,
): NonNullable<BlockReport["layers"]> {
  const name = (linear: string): string => `model.layers.${block}.${linear}`;
  return {
    q: { name: name("self_attn.q_proj"), weight: q, activation: null },
    down: { name: name("mlp.down_proj"), weight: down, activation: down },
  };
}

export function sampleReport(change: Partial<RunReport> = {}): RunReport {
  const linear = {
    linear: "q",
    weights: 1000,
    codeBits: 4000,
    scaleBits: 160,
    zeroBits: 40,
    bitsPerWeight: 4.2,
  };
  return {
    format: 1,
    writtenBy: "aq-native 0.0.0",
    finished: "2025-01-02T03:04:05.678Z",
    command: "aq-native quantize --model m --out o",
    settings: { wbits: 4, seqlen: null },
    machine: { device: "avx2, 2 threads", threads: 2, system: "Linux", node: "v20" },
    model: {
      path: "/models/small",
      out: "/out",
      family: "llama",
      blocks: 3,
      hidden: 8,
      heads: 2,
      kvHeads: 1,
      headDim: 4,
      mlp: 16,
      vocabulary: 32,
      parameters: 12345,
      dtype: "F16",
    },
    scheme: "W4A4",
    recipe: "default",
    calibration: { text: "books.txt", windows: 4, seqlen: 64 },
    perplexity: { before: 40, after: 50, windows: 16 },
    blocks: [0, 1, 2].map((block) => sampleBlock(block)),
    curves: [],
    seconds: 10,
    phaseSeconds: { statistics: 3, affine: 6, other: 1 },
    bits: {
      linears: [linear],
      total: { ...linear, linear: "all linears" },
      kept: [],
      runtime: [],
      bitsPerWeight: 4.2,
      rest: [{ name: "embeddings", parameters: 256, bits: 4096 }],
      bitsPerParameter: 6.6,
    },
    notes: ["a note"],
    ...change,
  };
}
