/** Orthogonal matrices: Hadamard with random signs, random ones, and ones that keep the ones vector. */

import type { Random } from "../util/random.ts";

/** A dense row-major matrix [n, n] in float64. */
export interface Square {
  readonly n: number;
  readonly data: Float64Array;
}

/** A standard normal number (Box-Muller). */
function normal(random: Random): number {
  const radius = Math.sqrt(-2 * Math.log(1 - random.unit()));
  return radius * Math.cos(2 * Math.PI * random.unit());
}

/** Q of the QR decomposition of a Gaussian matrix, by modified Gram-Schmidt, done twice for accuracy. */
export function randomOrthogonal(n: number, random: Random): Square {
  const data = Float64Array.from({ length: n * n }, () => normal(random));
  for (let row = 0; row < n; row++) {
    const x = data.subarray(row * n, (row + 1) * n);
    for (let pass = 0; pass < 2; pass++) {
      for (let before = 0; before < row; before++) {
        const q = data.subarray(before * n, (before + 1) * n);
        let dot = 0;
        for (let i = 0; i < n; i++) dot += (x[i] as number) * (q[i] as number);
        for (let i = 0; i < n; i++) x[i] = (x[i] as number) - dot * (q[i] as number);
      }
    }
    const length = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < n; i++) x[i] = (x[i] as number) / length;
  }
  return { n, data };
}

/** The odd part of n. */
export function oddPart(n: number): number {
  let odd = n;
  while (odd % 2 === 0) odd /= 2;
  return odd;
}

/**
 * diag(random signs) (Hadamard (x) random orthogonal): Hadamard of the power of two in n, a random
 * orthogonal matrix of its odd part. Spreads any one channel over all of them.
 */
export function signedHadamard(n: number, random: Random): Square {
  const odd = oddPart(n);
  const power = n / odd;
  const core = odd > 1 ? randomOrthogonal(odd, random).data : Float64Array.of(1);
  const data = new Float64Array(n * n);
  const scale = 1 / Math.sqrt(power);
  for (let row = 0; row < n; row++) {
    const sign = random.below(2) === 0 ? -scale : scale;
    for (let column = 0; column < n; column++) {
      // The entry of the Sylvester matrix: the parity of the bits that both indices have.
      const bits = Math.floor(row / odd) & Math.floor(column / odd);
      const value = core[(row % odd) * odd + (column % odd)] as number;
      data[row * n + column] = (parity(bits) ? -sign : sign) * value;
    }
  }
  return { n, data };
}

function parity(bits: number): boolean {
  let x = bits;
  for (let shift = 16; shift > 0; shift >>= 1) x ^= x >> shift;
  return (x & 1) === 1;
}

/**
 * A random orthogonal matrix with Q 1 = 1 and 1 Q = 1: P blockdiag(1, R) P, P the Householder
 * reflection that swaps e0 and 1/sqrt(n). LayerNorm commutes with it, since means survive.
 */
export function onesKeepingOrthogonal(n: number, random: Random): Square {
  const inner = randomOrthogonal(n - 1, random);
  const data = new Float64Array(n * n);
  data[0] = 1;
  for (let row = 1; row < n; row++) {
    const from = (row - 1) * inner.n;
    data.set(inner.data.subarray(from, from + inner.n), row * n + 1);
  }
  const u = new Float64Array(n).fill(1 / Math.sqrt(n));
  u[0] = (u[0] as number) - 1;
  const length = Math.sqrt(u.reduce((sum, value) => sum + value * value, 0));
  if (length > 0) {
    for (let i = 0; i < n; i++) u[i] = (u[i] as number) / length;
    reflectRows(data, n, u);
    reflectColumns(data, n, u);
  }
  return { n, data };
}

/** data <- (I - 2 u ut) data */
function reflectRows(data: Float64Array, n: number, u: Float64Array): void {
  const dots = new Float64Array(n);
  for (let row = 0; row < n; row++) {
    for (let i = 0; i < n; i++) {
      dots[i] = (dots[i] as number) + (u[row] as number) * (data[row * n + i] as number);
    }
  }
  for (let row = 0; row < n; row++) {
    for (let i = 0; i < n; i++) {
      const at = row * n + i;
      data[at] = (data[at] as number) - 2 * (u[row] as number) * (dots[i] as number);
    }
  }
}

/** data <- data (I - 2 u ut) */
function reflectColumns(data: Float64Array, n: number, u: Float64Array): void {
  for (let row = 0; row < n; row++) {
    const x = data.subarray(row * n, (row + 1) * n);
    let dot = 0;
    for (let i = 0; i < n; i++) dot += (x[i] as number) * (u[i] as number);
    for (let i = 0; i < n; i++) x[i] = (x[i] as number) - 2 * dot * (u[i] as number);
  }
}
