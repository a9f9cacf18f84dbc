/**
 * A small seeded generator, so that a run with the same seed picks the same windows on every
 * machine and with every version of Node.
 *
 * xoshiro128** (Blackman and Vigna, 2018): 128 bits of state, period 2^128 - 1; the state is filled
 * by splitmix32 from the two halves of the seed.
 */

/** Draws of one seeded sequence. */
export interface Random {
  /** Next 32 bits as an integer of [0, 2^32). */
  bits(): number;
  /** Next integer of [0, n), without bias; n of 1 .. 2^32. */
  below(n: number): number;
  /** Next number of [0, 1), with 53 random bits. */
  unit(): number;
}

/** Starts the sequence of a seed (any safe integer). */
export function createRandom(seed: number): Random {
  const low = splitmix32(seed | 0);
  // Any constant other than 0, lest both halves of the state be equal for seed 0.
  const high = splitmix32(Math.floor(seed / 2 ** 32) ^ rotl(seed | 0, 16) ^ 0x6a09e667);
  const s = new Uint32Array([low(), high(), low(), high()]);
  // The one state that xoshiro cannot leave.
  if (s.every((x) => x === 0)) s[0] = 1;

  const bits = (): number => {
    const [a, b, c, d] = s as unknown as [number, number, number, number];
    const result = Math.imul(rotl(Math.imul(b, 5), 7), 9) >>> 0;
    const c2 = c ^ a;
    const d2 = d ^ b;
    s[1] = b ^ c2;
    s[0] = a ^ d2;
    s[2] = c2 ^ (b << 9);
    s[3] = rotl(d2, 11);
    return result;
  };
  const below = (n: number): number => {
    // Draws from the incomplete last run of n would favour small results; they are thrown away.
    const limit = 2 ** 32 - (2 ** 32 % n);
    let x = bits();
    while (x >= limit) x = bits();
    return x % n;
  };
  const unit = (): number => ((bits() >>> 5) * 2 ** 26 + (bits() >>> 6)) / 2 ** 53;
  return { bits, below, unit };
}

function splitmix32(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  };
}

function rotl(x: number, k: number): number {
  return (x << k) | (x >>> (32 - k));
}
