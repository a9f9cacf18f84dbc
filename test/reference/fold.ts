// Folds of transforms into weights, in float64.
import { at } from "./numbers.ts";

/** y_oi = r_o w_oi c_i; an absent vector counts as ones. */
export function scaleWeight(
  w: Float64Array,
  r: Float64Array | undefined,
  c: Float64Array | undefined,
  [O, I]: readonly [number, number],
): Float64Array {
  const y = new Float64Array(O * I);
  for (let o = 0; o < O; o++) {
    for (let i = 0; i < I; i++) {
      y[o * I + i] = (r ? at(r, o) : 1) * at(w, o * I + i) * (c ? at(c, i) : 1);
    }
  }
  return y;
}

/** How the heads of a weight meet the matrices of the kv heads. */
export interface HeadLayout {
  /** 0: heads along the rows, 1: along the columns. */
  readonly side: number;
  readonly transpose: boolean;
  readonly heads: number;
  readonly kvHeads: number;
  /** Head size. */
  readonly D: number;
}

/** Each head's rows (or columns) of w [rows, cols] times the matrix of its kv head. */
export function headMatmul(
  w: Float64Array,
  m: Float64Array,
  [rows, cols]: readonly [number, number],
  { side, transpose, heads, kvHeads, D }: HeadLayout,
): Float64Array {
  const y = new Float64Array(rows * cols);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const position = side === 0 ? row : col;
      const head = Math.floor(position / D);
      const inHead = position % D;
      const base = Math.floor(head / (heads / kvHeads)) * D * D;
      let sum = 0;
      for (let k = 0; k < D; k++) {
        // Rows: y_i = sum op(m)_ik w_k. Columns: y_j = sum w_k op(m)_kj.
        const [i, j] = side === 0 ? [inHead, k] : [k, inHead];
        const entry = at(m, base + (transpose ? j * D + i : i * D + j));
        const other = head * D + k;
        sum += entry * at(w, side === 0 ? other * cols + col : row * cols + other);
      }
      y[row * cols + col] = sum;
    }
  }
  return y;
}

/** Turns of the row pairs (i, i + D/2) of every head by e^(sign_r log_r) and sign_theta theta. */
export function rotatePairs(
  w: Float64Array,
  logR: Float64Array,
  theta: Float64Array,
  layout: {
    readonly heads: number;
    readonly kvHeads: number;
    readonly D: number;
    readonly I: number;
    readonly signR: number;
    readonly signTheta: number;
  },
): Float64Array {
  const { heads, kvHeads, D, I, signR, signTheta } = layout;
  const y = new Float64Array(w.length);
  for (let head = 0; head < heads; head++) {
    const kv = Math.floor((head * kvHeads) / heads);
    for (let pair = 0; pair < D / 2; pair++) {
      const factor = Math.exp(signR * at(logR, kv * (D / 2) + pair));
      const angle = signTheta * at(theta, kv * (D / 2) + pair);
      for (let i = 0; i < I; i++) {
        const first = (head * D + pair) * I + i;
        const second = first + (D / 2) * I;
        const [a, b] = [at(w, first), at(w, second)];
        y[first] = factor * (a * Math.cos(angle) - b * Math.sin(angle));
        y[second] = factor * (b * Math.cos(angle) + a * Math.sin(angle));
      }
    }
  }
  return y;
}

/** The gradual mask's factor at distance |i - j| from the diagonal. */
export function maskFactor(distance: number, band: number, sf: number): number {
  if (distance === 0) return 1;
  return distance <= band ? sf : 0;
}

/** s o M, for a batch of D x D matrices. */
export function gradualMask(s: Float64Array, D: number, band: number, sf: number): Float64Array {
  return s.map((value, index) => {
    const j = index % D;
    const i = Math.floor(index / D) % D;
    return maskFactor(Math.abs(i - j), band, sf) * value;
  });
}
