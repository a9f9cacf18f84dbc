// Losses, look-ups and statistics in float64.
import { at } from "./numbers.ts";

/** Sum of (a - b)^2; an absent b counts as zero. */
export function squaredDifference(a: Float64Array, b: Float64Array | undefined): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (at(a, i) - (b ? at(b, i) : 0)) ** 2;
  return sum;
}

/** Mean of (y - t)^2. */
export function mse(y: Float64Array, t: Float64Array): number {
  return squaredDifference(y, t) / y.length;
}

/** -log softmax at the id of each row. */
export function crossEntropy(logits: Float64Array, ids: Float64Array, V: number): Float64Array {
  return ids.map((id, row) => {
    const values = logits.subarray(row * V, (row + 1) * V);
    const top = values.reduce((a, b) => Math.max(a, b));
    const total = values.reduce((sum, value) => sum + Math.exp(value - top), 0);
    return top + Math.log(total) - at(values, id);
  });
}

/** Mean over rows of KL(softmax(targets) || softmax(logits)). */
export function klDivergence(logits: Float64Array, targets: Float64Array, V: number): number {
  const M = logits.length / V;
  let sum = 0;
  for (let row = 0; row < M; row++) {
    const [student, teacher] = [logits, targets].map((all) => {
      const values = all.subarray(row * V, (row + 1) * V);
      const top = values.reduce((a, b) => Math.max(a, b));
      const total = values.reduce((acc, value) => acc + Math.exp(value - top), 0);
      return values.map((value) => value - top - Math.log(total));
    }) as [Float64Array, Float64Array];
    teacher.forEach((log, v) => {
      sum += Math.exp(log) * (log - at(student, v));
    });
  }
  return sum / M;
}

/** Rows of a table [V, C] by id. */
export function gatherRows(table: Float64Array, ids: Float64Array, C: number): Float64Array {
  const y = new Float64Array(ids.length * C);
  for (const [row, id] of ids.entries()) y.set(table.subarray(id * C, (id + 1) * C), row * C);
  return y;
}

/** Largest magnitude, maximum and minimum of every column of x [M, C]. */
export function channelStats(x: Float64Array, C: number): readonly Float64Array[] {
  const top = new Float64Array(C).fill(Number.NEGATIVE_INFINITY);
  const bottom = new Float64Array(C).fill(Number.POSITIVE_INFINITY);
  x.forEach((value, i) => {
    top[i % C] = Math.max(at(top, i % C), value);
    bottom[i % C] = Math.min(at(bottom, i % C), value);
  });
  const magnitude = top.map((value, c) => Math.max(Math.abs(value), Math.abs(at(bottom, c))));
  return [magnitude, top, bottom];
}
