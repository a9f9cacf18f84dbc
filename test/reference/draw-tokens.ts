// The choice of tokens in float64.

/**
 * Of each row of logits [M, V] with draws [M, 2] of temperature t and place u: the first token at which the
 * probabilities e^(l / t) / sum, added up in order, are above u; the first of the largest at t = 0; -1 of a
 * row without a number.
 */
export function drawTokens(logits: Float64Array, draws: Float64Array, V: number): Float64Array {
  return Float64Array.from({ length: draws.length / 2 }, (_, row) => {
    const values = Array.from(logits.subarray(row * V, (row + 1) * V));
    const numbers = values.filter((x) => !Number.isNaN(x));
    const top = Math.max(Number.NEGATIVE_INFINITY, ...numbers);
    if (top === Number.NEGATIVE_INFINITY) return -1;
    const [temperature, place] = [draws[2 * row] as number, draws[2 * row + 1] as number];
    if (temperature === 0) return values.indexOf(top);
    const weights = values.map((x) => (Number.isNaN(x) ? 0 : Math.exp((x - top) / temperature)));
    const total = weights.reduce((a, b) => a + b, 0);
    let sum = 0;
    return weights.findIndex((w) => {
      sum += w;
      return sum > place * total;
    });
  });
}
