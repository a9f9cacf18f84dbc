// How tokens are drawn from logits.
import { describe, expect, it } from "vitest";
import { chooseTokens, Sampler, type SamplingOptions } from "../lib/generate/sampler.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";

const LOGITS = Float32Array.from(
  { length: 500 },
  (_, i) => 4 * Math.sin(7 * i) + (i % 5 === 0 ? 1 : 0),
);

/** Probabilities by the definition, and the fewest tokens that reach `topP`. */
function nucleus(temperature: number, topP: number): ReadonlyMap<number, number> {
  const weights = [...LOGITS].map((x) => Math.exp(x / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  const order = [...weights.keys()].sort((a, b) => (weights[b] as number) - (weights[a] as number));
  const kept = new Map<number, number>();
  let sum = 0;
  for (const i of order) {
    if (sum >= topP * total) break;
    kept.set(i, weights[i] as number);
    sum += weights[i] as number;
  }
  return new Map([...kept].map(([i, w]) => [i, w / sum]));
}

/** Rows of logits of one length. */
function logitsOf(rows: readonly Float32Array[]): Tensor {
  const width = (rows[0] as Float32Array).length;
  const all = new Float32Array(rows.length * width);
  for (const [n, row] of rows.entries()) all.set(row, n * width);
  return Tensor.from(all, [rows.length, width]);
}

/** Tokens of them. */
async function choose(rows: readonly Float32Array[], samplers: readonly Sampler[]) {
  const logits = logitsOf(rows);
  try {
    return [...(await chooseTokens(logits, samplers))];
  } finally {
    logits.dispose();
  }
}

/** Tokens of LOGITS, 500 at a time, of one sampler. */
async function drawMany(options: SamplingOptions, draws: number): Promise<number[]> {
  const samplers = new Array<Sampler>(500).fill(new Sampler(options));
  const logits = logitsOf(samplers.map(() => LOGITS));
  const all: number[] = [];
  try {
    while (all.length < draws) all.push(...(await chooseTokens(logits, samplers)));
  } finally {
    logits.dispose();
  }
  return all;
}

describe("a sampler", () => {
  it("takes the most likely token at temperature 0, the first of equals", async () => {
    const live = liveTensors();
    const rows = [Float32Array.of(1, 3, 2, 3), Float32Array.of(Number.NaN, -5, -Infinity, -7)];
    expect(await choose(rows, [new Sampler(), new Sampler({ topP: 0.5 })])).toEqual([1, 1]);
    const nothing = choose([Float32Array.of(Number.NaN, -Infinity)], [new Sampler()]);
    await expect(nothing).rejects.toThrow("not numbers");
    expect(liveTensors()).toBe(live);
  });

  it("draws in a row what it would draw alone", async () => {
    const options = [{ temperature: 1 }, { temperature: 0.7, topP: 0.6 }, {}, { temperature: 2 }];
    const samplers = (): Sampler[] => options.map((o, seed) => new Sampler({ ...o, seed }));
    const rows = options.map((_, n) => LOGITS.map((x, i) => x + Math.cos(3 * n + i)));
    const [together, alone] = [samplers(), samplers()];
    for (let step = 0; step < 20; step++) {
      const own = await Promise.all(
        rows.map(async (row, n) => (await choose([row], [alone[n] as Sampler]))[0]),
      );
      expect(await choose(rows, together)).toEqual(own);
    }
  });

  it.each([
    [1, 1],
    [0.7, 0.9],
    [2, 0.35],
    [0.3, 0.01],
  ])(
    "draws with the probabilities of the nucleus, temperature %d, top-p %d",
    async (temperature, topP) => {
      const expected = nucleus(temperature, topP);
      const counts = new Map<number, number>();
      const draws = 20000;
      for (const id of await drawMany({ temperature, topP, seed: 3 }, draws)) {
        counts.set(id, (counts.get(id) ?? 0) + 1);
      }
      for (const id of counts.keys()) expect(expected.has(id)).toBe(true);
      for (const [id, p] of expected) {
        // Five standard deviations.
        const slack = 5 * Math.sqrt(draws * p * (1 - p)) + 5;
        expect(Math.abs((counts.get(id) ?? 0) - draws * p), `token ${id}`).toBeLessThan(slack);
      }
    },
  );

  it.each([0.8, 1])(
    "repeats itself with the same seed, and not with another, top-p %d",
    async (topP) => {
      const text = (seed: number): Promise<number[]> =>
        drawMany({ temperature: 1, topP, seed }, 30);
      expect(await text(5)).toEqual(await text(5));
      expect(await text(5)).not.toEqual(await text(6));
    },
  );

  it("refuses settings that mean nothing", () => {
    for (const options of [{ temperature: -1 }, { topP: 0 }, { topP: 1.5 }, { seed: 0.5 }]) {
      expect(() => new Sampler(options)).toThrow(/must be/);
    }
  });
});
