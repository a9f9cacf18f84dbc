// Cases of inverse, matmul and hadamard.
import {
  firstOrderInverse,
  hadamardMatrix,
  inverse as inverseReference,
  matmul as matmulReference,
} from "../reference/linalg.ts";
import { type Dims, dim, input, type OpCase, param, SUMMED } from "./case.ts";

/** Starts of lu_inverse: none, one close to the inverse, one that must be found to be useless. */
const [CLOSE_START, POOR_START] = [1, 2];

const inverse: OpCase = {
  op: "lu_inverse",
  // dominant 1: rows strictly diagonally dominant; 0: a general matrix, which needs pivoting.
  sets: [
    { B: 1, D: 1, dominant: 1, pivot: 0, start: 0 },
    { B: 3, D: 5, dominant: 1, pivot: 0, start: 0 },
    { B: 2, D: 32, dominant: 1, pivot: 0, start: CLOSE_START },
    { B: 1, D: 67, dominant: 1, pivot: 1, start: 0 },
    { B: 2, D: 9, dominant: 0, pivot: 0, start: POOR_START },
    { B: 2, D: 16, dominant: 0, pivot: 1, start: 0 },
    { B: 2, D: 64, dominant: 1, pivot: 0, start: 0 },
    { B: 2, D: 128, dominant: 1, pivot: 0, start: 0 },
    { B: 1, D: 128, dominant: 0, pivot: 0, start: 0 },
    { B: 2, D: 131, dominant: 1, pivot: 0, start: 0 },
    { B: 2, D: 130, dominant: 0, pivot: 0, start: 0 },
    { B: 1, D: 264, dominant: 1, pivot: 0, start: CLOSE_START },
    { B: 1, D: 257, dominant: 1, pivot: 0, start: POOR_START },
  ],
  real: [
    { B: 8, D: 64, dominant: 1, pivot: 0, start: 0 },
    { B: 32, D: 128, dominant: 1, pivot: 0, start: 0 },
    { B: 1, D: 512, dominant: 1, pivot: 0, start: 0 },
    { B: 1, D: 512, dominant: 1, pivot: 1, start: 0 },
  ],
  make: (draw, dims) => {
    const [B, D] = [dim(dims, "B"), dim(dims, "D")];
    const dominant = dim(dims, "dominant") === 1;
    const start = dim(dims, "start");
    const matrix = draw.normal([B, D, D], dominant ? 0.2 / D : 2 / Math.sqrt(D)).data.slice();
    for (let b = 0; b < B; b++) {
      for (let i = 0; i < D; i++) {
        const at = (b * D + i) * D;
        if (dominant) matrix[at + i] = 1 + 0.5 * Math.sin(i + b);
        else {
          // A zero on the diagonal cannot be a pivot; a large entry beside it keeps the
          // condition number small.
          matrix[at + i] = 0;
          matrix[at + ((i + 1) % D)] = 8;
        }
      }
    }
    const x0 =
      start === CLOSE_START
        ? draw.value(firstOrderInverse(matrix, D), [B, D, D])
        : start === POOR_START
          ? draw.normal([B, D, D])
          : undefined;
    return { inputs: [draw.value(matrix, [B, D, D]), x0], params: { pivot: dim(dims, "pivot") } };
  },
  reference: (call) => [inverseReference(input(call, 0).data, input(call, 0).shape[1] ?? 0)],
  tolerance: { f32: { rtol: 1e-4, atol: 1e-6 }, f64: { rtol: 1e-11, atol: 1e-13 } },
  bytes: (dims, size) => 2 * dim(dims, "B") * dim(dims, "D") ** 2 * size,
  flops: (dims) => 2 * dim(dims, "B") * dim(dims, "D") ** 3,
  bound: "flops",
};

const matmul: OpCase = {
  op: "matmul",
  sets: [
    { B: 1, M: 1, N: 1, K: 1, ta: 0, tb: 0 },
    { B: 2, M: 5, N: 7, K: 3, ta: 0, tb: 0 },
    { B: 3, M: 17, N: 9, K: 33, ta: 1, tb: 0 },
    { B: 1, M: 33, N: 65, K: 40, ta: 0, tb: 1 },
    { B: 2, M: 8, N: 31, K: 13, ta: 1, tb: 1 },
  ],
  real: [
    { B: 8, M: 64, N: 64, K: 64, ta: 0, tb: 0 },
    { B: 32, M: 128, N: 128, K: 128, ta: 1, tb: 0 },
    { B: 1, M: 512, N: 512, K: 512, ta: 0, tb: 1 },
  ],
  make: (draw, dims) => {
    const [B, M, N, K] = [dim(dims, "B"), dim(dims, "M"), dim(dims, "N"), dim(dims, "K")];
    const [ta, tb] = [dim(dims, "ta"), dim(dims, "tb")];
    return {
      inputs: [draw.normal(ta ? [B, K, M] : [B, M, K]), draw.normal(tb ? [B, N, K] : [B, K, N])],
      params: { alpha: -0.5, trans_a: ta, trans_b: tb },
    };
  },
  reference: (call) => {
    const [a, b] = [input(call, 0), input(call, 1)];
    const [transA, transB] = [param(call, "trans_a") !== 0, param(call, "trans_b") !== 0];
    const [B, rows, cols] = a.shape as [number, number, number];
    const [M, K] = transA ? [cols, rows] : [rows, cols];
    const N = b.shape[transB ? 1 : 2] ?? 0;
    const options = { alpha: param(call, "alpha"), transA, transB };
    return [matmulReference(a.data, b.data, { B, M, N, K }, options)];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => {
    const [B, M, N, K] = [dim(dims, "B"), dim(dims, "M"), dim(dims, "N"), dim(dims, "K")];
    return B * (M * K + K * N + M * N) * size;
  },
  flops: (dims: Dims) => 2 * dim(dims, "B") * dim(dims, "M") * dim(dims, "N") * dim(dims, "K"),
  bound: "flops",
};

/** What is left of F after all factors of two. */
function oddPart(F: number): number {
  return F % 2 === 0 ? oddPart(F / 2) : F;
}

const hadamard: OpCase = {
  op: "hadamard",
  // Less than a vector, powers of two, odd numbers, both; rows of one and of several runs.
  sets: [
    { M: 1, runs: 1, F: 1, inverse: 0 },
    { M: 3, runs: 1, F: 8, inverse: 0 },
    { M: 2, runs: 3, F: 64, inverse: 0 },
    { M: 2, runs: 1, F: 512, inverse: 1 },
    { M: 4, runs: 1, F: 7, inverse: 0 },
    { M: 3, runs: 2, F: 12, inverse: 1 },
    { M: 2, runs: 1, F: 43, inverse: 1 },
    { M: 5, runs: 1, F: 176, inverse: 0 },
    { M: 2, runs: 1, F: 640, inverse: 0 },
    { M: 1, runs: 1, F: 1376, inverse: 1 },
  ],
  real: [
    { M: 2048, runs: 1, F: 1376, inverse: 0 },
    { M: 2048, runs: 1, F: 4096, inverse: 0 },
    { M: 2048, runs: 32, F: 128, inverse: 0 },
    { M: 2048, runs: 1, F: 11008, inverse: 0 },
    { M: 2048, runs: 1, F: 14336, inverse: 1 },
  ],
  make: (draw, dims) => {
    const F = dim(dims, "F");
    const m = oddPart(F);
    // The formula holds for any matrix: one that is not orthogonal shows a wrong transpose.
    const odd = m > 1 ? draw.normal([m, m], 1 / Math.sqrt(m)) : undefined;
    const signs = draw.integers([F], 2, "i32").data.map((bit) => 2 * bit - 1);
    return {
      inputs: [draw.normal([dim(dims, "M"), dim(dims, "runs") * F]), draw.value(signs, [F]), odd],
      params: { inverse: dim(dims, "inverse") },
    };
  },
  reference: (call) => {
    const [x, signs] = [input(call, 0).data, input(call, 1).data];
    const F = signs.length;
    const matrix = hadamardMatrix(signs, call.inputs[2]?.data ?? Float64Array.of(1));
    const sizes = { B: 1, M: x.length / F, N: F, K: F };
    const transB = param(call, "inverse") !== 0;
    return [matmulReference(x, matrix, sizes, { alpha: 1, transA: false, transB })];
  },
  tolerance: SUMMED,
  bytes: (dims, size) => 2 * dim(dims, "M") * dim(dims, "runs") * dim(dims, "F") * size,
  flops: (dims) => {
    const F = dim(dims, "F");
    const m = oddPart(F);
    const odd = m > 1 ? 2 * m : 0;
    return dim(dims, "M") * dim(dims, "runs") * F * (Math.log2(F / m) + odd + 1);
  },
  bound: "memory",
};

export const CASES: readonly OpCase[] = [inverse, matmul, hadamard];
