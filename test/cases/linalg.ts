// Cases of inverse and matmul.
import { inverse as inverseReference, matmul as matmulReference } from "../reference/linalg.ts";
import { type Dims, dim, input, type OpCase, param, SUMMED } from "./case.ts";

const inverse: OpCase = {
  op: "inverse",
  // dominant 1: rows strictly diagonally dominant; 0: a general matrix, which needs pivoting.
  sets: [
    { B: 1, D: 1, dominant: 1, pivot: 0 },
    { B: 3, D: 5, dominant: 1, pivot: 0 },
    { B: 2, D: 32, dominant: 1, pivot: 0 },
    { B: 1, D: 67, dominant: 1, pivot: 1 },
    { B: 2, D: 9, dominant: 0, pivot: 0 },
    { B: 2, D: 16, dominant: 0, pivot: 1 },
  ],
  real: [
    { B: 8, D: 64, dominant: 1, pivot: 0 },
    { B: 32, D: 128, dominant: 1, pivot: 0 },
    { B: 1, D: 512, dominant: 1, pivot: 0 },
    { B: 1, D: 512, dominant: 1, pivot: 1 },
  ],
  make: (draw, dims) => {
    const [B, D] = [dim(dims, "B"), dim(dims, "D")];
    const dominant = dim(dims, "dominant") === 1;
    const matrix = draw.normal([B, D, D], dominant ? 0.2 / D : 1).data.slice();
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
    return { inputs: [draw.value(matrix, [B, D, D])], params: { pivot: dim(dims, "pivot") } };
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

export const CASES: readonly OpCase[] = [inverse, matmul];
