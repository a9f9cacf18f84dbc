// Linear algebra and the optimizer steps in float64.
import { maskFactor } from "./fold.ts";
import { at } from "./numbers.ts";

/** Inverse of each D x D matrix of a batch, by Gauss-Jordan elimination with partial pivoting. */
export function inverse(a: Float64Array, D: number): Float64Array {
  const result = new Float64Array(a.length);
  for (let base = 0; base < a.length; base += D * D) {
    // Rows of [A | I], swapped and combined until the left half is I.
    const rows = Array.from({ length: D }, (_, i) => {
      const row = new Float64Array(2 * D);
      row.set(a.subarray(base + i * D, base + (i + 1) * D));
      row[D + i] = 1;
      return row;
    });
    for (let col = 0; col < D; col++) {
      const rest = rows.slice(col);
      const pivot = rest.reduce((best, row) =>
        Math.abs(at(row, col)) > Math.abs(at(best, col)) ? row : best,
      );
      rows.splice(rows.indexOf(pivot), 1);
      rows.splice(col, 0, pivot);
      const divisor = at(pivot, col);
      for (let j = 0; j < 2 * D; j++) pivot[j] = at(pivot, j) / divisor;
      for (const row of rows) {
        if (row === pivot) continue;
        const factor = at(row, col);
        // No checked access here: this loop is most of what the large cases take.
        for (let j = 0; j < 2 * D; j++) row[j] = (row[j] ?? 0) - factor * (pivot[j] ?? 0);
      }
    }
    for (const [i, row] of rows.entries()) result.set(row.subarray(D), base + i * D);
  }
  return result;
}

/** D^-1 - D^-1 E D^-1 for each matrix D + E of a batch: an inverse of nearly diagonal ones, nearly. */
export function firstOrderInverse(a: Float64Array, D: number): Float64Array {
  return a.map((value, at) => {
    const [base, i, j] = [at - (at % (D * D)), Math.floor(at / D) % D, at % D];
    const diagonal = (k: number): number => a[base + k * (D + 1)] ?? 0;
    return i === j ? 1 / value : -value / (diagonal(i) * diagonal(j));
  });
}

/** alpha op(a) op(b) for each of B pairs; a transposed operand is stored [K, M] or [N, K]. */
export function matmul(
  a: Float64Array,
  b: Float64Array,
  sizes: { readonly B: number; readonly M: number; readonly N: number; readonly K: number },
  options: { readonly alpha: number; readonly transA: boolean; readonly transB: boolean },
): Float64Array {
  const { B, M, N, K } = sizes;
  const { alpha, transA, transB } = options;
  const y = new Float64Array(B * M * N);
  for (let batch = 0; batch < B; batch++) {
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) {
        let sum = 0;
        for (let k = 0; k < K; k++) {
          const left = at(a, batch * M * K + (transA ? k * M + m : m * K + k));
          sum += left * at(b, batch * K * N + (transB ? n * K + k : k * N + n));
        }
        y[(batch * M + m) * N + n] = alpha * sum;
      }
    }
  }
  return y;
}

/** Rates of AdamW. */
export interface AdamOptions {
  readonly lr: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  readonly step: number;
}

/** The state that an optimizer step reads and writes. */
export interface AdamState {
  readonly p: Float64Array;
  readonly m: Float64Array;
  readonly v: Float64Array;
}

/** One AdamW step on the entries for which `selected` holds; the others stay as they are. */
export function adam(
  state: AdamState,
  g: Float64Array,
  { lr, beta1, beta2, eps, weightDecay, step }: AdamOptions,
  selected: (i: number) => boolean = () => true,
): AdamState {
  const [p, m, v] = [state.p.slice(), state.m.slice(), state.v.slice()];
  for (let i = 0; i < p.length; i++) {
    if (!selected(i)) continue;
    const mean = beta1 * at(m, i) + (1 - beta1) * at(g, i);
    const square = beta2 * at(v, i) + (1 - beta2) * at(g, i) ** 2;
    m[i] = mean;
    v[i] = square;
    const step1 = mean / (1 - beta1 ** step);
    const step2 = Math.sqrt(square / (1 - beta2 ** step)) + eps;
    p[i] = at(p, i) * (1 - lr * weightDecay) - (lr * step1) / step2;
  }
  return { p, m, v };
}

/** The band of a gradual mask and the dominance that is kept under it. */
export interface DominanceOptions {
  readonly D: number;
  readonly band: number;
  readonly sf: number;
  /** Largest allowed ratio of a row's off-diagonal sum to its diagonal; not positive: any. */
  readonly limit: number;
  /** Magnitudes in the band are raised to it, zeros excepted. */
  readonly floor: number;
}

/**
 * AdamW inside the band, the floor, then the dominance projection; also each matrix's margin. `g` is the
 * gradient of the masked matrix.
 */
export function maskedAdam(
  state: AdamState,
  g: Float64Array,
  rates: AdamOptions,
  { D, band, sf, limit, floor }: DominanceOptions,
): AdamState & { readonly margin: Float64Array } {
  const distance = (i: number) => Math.abs((Math.floor(i / D) % D) - (i % D));
  const isLive = (i: number) => distance(i) <= band;
  const ofP = g.map((slope, i) => maskFactor(distance(i), band, sf) * slope);
  const next = adam(state, ofP, rates, isLive);
  const { p } = next;
  for (const [i, raised] of keepAway(p, floor).entries()) if (isLive(i)) p[i] = raised;
  const margin = new Float64Array(p.length / (D * D)).fill(Number.POSITIVE_INFINITY);
  for (let row = 0; row < p.length / D; row++) {
    const diagonal = row * D + (row % D);
    const masked = (i: number) => maskFactor(distance(i), band, sf) * at(p, i);
    const offDiagonal = () => {
      let sum = 0;
      for (let i = row * D; i < (row + 1) * D; i++) if (i !== diagonal) sum += Math.abs(masked(i));
      return sum;
    };
    const bound = limit * Math.abs(at(p, diagonal));
    const off = offDiagonal();
    if (limit > 0 && off > bound) {
      for (let i = row * D; i < (row + 1) * D; i++) {
        if (i !== diagonal && distance(i) <= band) p[i] = (at(p, i) * bound) / off;
      }
    }
    const matrix = Math.floor(row / D);
    const rowMargin = 1 - offDiagonal() / Math.abs(at(p, diagonal));
    margin[matrix] = Math.min(at(margin, matrix), rowMargin);
  }
  return { ...next, margin };
}

/** Values with magnitudes raised to a limit, zeros excepted. */
export function keepAway(p: Float64Array, limit: number): Float64Array {
  return p.map((value) => Math.sign(value) * Math.max(Math.abs(value), limit));
}

/** Offsets after a step of `lr` against the sign of each gradient, kept within the limit. */
export function signStep(
  v: Float64Array,
  g: Float64Array,
  { lr, limit }: { readonly lr: number; readonly limit: number },
): Float64Array {
  return v.map((value, i) => {
    const next = value - lr * Math.sign(at(g, i));
    return Math.min(Math.max(next, -limit), limit);
  });
}

/** diag(signs) (Sylvester's Hadamard matrix (x) odd) / sqrt(2^k) as a dense matrix [F, F]. */
export function hadamardMatrix(signs: Float64Array, odd: Float64Array): Float64Array {
  const F = signs.length;
  const m = Math.round(Math.sqrt(odd.length));
  // Doubling: H_2n = [H_n, H_n; H_n, -H_n].
  let hadamard = [[1]];
  while (hadamard.length * m < F) {
    hadamard = [
      ...hadamard.map((row) => [...row, ...row]),
      ...hadamard.map((row) => [...row, ...row.map((value) => -value)]),
    ];
  }
  const norm = Math.sqrt(hadamard.length);
  return Float64Array.from({ length: F * F }, (_, index) => {
    const [i, j] = [Math.floor(index / F), index % F];
    const sign = hadamard[Math.floor(i / m)]?.[Math.floor(j / m)] ?? 0;
    return (at(signs, i) * sign * at(odd, (i % m) * m + (j % m))) / norm;
  });
}
