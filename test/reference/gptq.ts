// GPTQ on a given grid in float64, column by column and without blocks, from the inverse itself.
import { roundEven } from "../helpers/half.ts";
import { inverse } from "./linalg.ts";
import { at } from "./numbers.ts";
import { type Grid, type Groups, groupOf, quantize } from "./quantize.ts";

/** U upper triangular with a positive diagonal and Ut U = A, for a positive definite A [n, n]. */
export function upperFactor(a: Float64Array, n: number): Float64Array {
  const u = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let rest = at(a, i * n + j);
      for (let k = 0; k < i; k++) rest -= at(u, k * n + i) * at(u, k * n + j);
      u[i * n + j] = i === j ? Math.sqrt(rest) : rest / at(u, i * n + i);
    }
  }
  return u;
}

/** Codes of w [M, K], given the second moments h [K, K] of its input. */
export function gptq(
  w: Float64Array,
  h: Float64Array,
  grid: Grid,
  groups: Groups,
  options: { readonly bits: number; readonly damping: number },
): Float64Array {
  const { bits, damping } = options;
  if (h.every((value) => value === 0)) return quantize(w, grid, bits, groups);
  const n = groups.K;
  let trace = 0;
  for (let i = 0; i < n; i++) trace += at(h, i * n + i);
  const damped = h.map((value, i) => value + (i % (n + 1) === 0 ? (damping * trace) / n : 0));
  const u = upperFactor(inverse(damped, n), n);
  const rest = w.slice();
  const codes = new Float64Array(w.length);
  for (let j = 0; j < n; j++) {
    for (let i = j; i < w.length; i += n) {
      const group = groupOf(i, groups);
      const [s, z] = [at(grid.scale, group), at(grid.zero, group)];
      const code = Math.min(Math.max(roundEven(at(rest, i) / s) + z, 0), 2 ** bits - 1);
      codes[i] = code;
      const error = (at(rest, i) - (code - z) * s) / at(u, j * n + j);
      for (let k = j; k < n; k++) {
        rest[i + k - j] = at(rest, i + k - j) - error * at(u, j * n + k);
      }
    }
  }
  return codes;
}
