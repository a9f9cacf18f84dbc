// How tokens are drawn from logits.
import { describe, expect, it } from "vitest";
import { Sampler } from "../lib/generate/sampler.ts";

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

describe("a sampler", () => {
  it("takes the most likely token at temperature 0, the first of equals", () => {
    expect(new Sampler().next(Float32Array.of(1, 3, 2, 3))).toBe(1);
    expect(new Sampler().next(Float32Array.of(Number.NaN, -5, Number.NEGATIVE_INFINITY))).toBe(1);
    expect(() => new Sampler().next(Float32Array.of(Number.NaN))).toThrow("not numbers");
  });

  it.each([
    [1, 1],
    [0.7, 0.9],
    [2, 0.35],
    [0.3, 0.01],
  ])(
    "draws with the probabilities of the nucleus, temperature %d, top-p %d",
    (temperature, topP) => {
      const expected = nucleus(temperature, topP);
      const sampler = new Sampler({ temperature, topP, seed: 3 });
      const counts = new Map<number, number>();
      const draws = 20000;
      for (let n = 0; n < draws; n++) {
        const id = sampler.next(LOGITS);
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

  it("repeats itself with the same seed, and not with another", () => {
    const text = (seed: number): number[] => {
      const sampler = new Sampler({ temperature: 1, topP: 0.8, seed });
      return Array.from({ length: 30 }, () => sampler.next(LOGITS));
    };
    expect(text(5)).toEqual(text(5));
    expect(text(5)).not.toEqual(text(6));
  });

  it("refuses settings that mean nothing", () => {
    for (const options of [{ temperature: -1 }, { topP: 0 }, { topP: 1.5 }, { seed: 0.5 }]) {
      expect(() => new Sampler(options)).toThrow(/must be/);
    }
  });
});
