// Gradients of smooth functions by central differences of fourth order.
import { at } from "./numbers.ts";

/**
 * Gradient of sum over k of <g_k, f_k(xs)> with respect to xs[which], where f gives one array per
 * output. The step balances truncation (step^4) against rounding (1e-16 / step).
 */
export function differences(
  f: (xs: readonly Float64Array[]) => readonly Float64Array[],
  xs: readonly Float64Array[],
  which: number,
  gs: readonly Float64Array[],
): Float64Array {
  const step = 1e-3;
  const x = (xs[which] as Float64Array).slice();
  const points = xs.map((other, i) => (i === which ? x : other));
  const base = f(points);
  // Subtracting the value at the centre keeps the sum small, and with it the rounding error.
  const change = (): number => {
    const ys = f(points);
    let sum = 0;
    gs.forEach((g, k) => {
      const [y, y0] = [ys[k] as Float64Array, base[k] as Float64Array];
      for (let i = 0; i < g.length; i++) sum += at(g, i) * (at(y, i) - at(y0, i));
    });
    return sum;
  };
  return x.map((_, i) => {
    const centre = at(x, i);
    const value = (offset: number): number => {
      x[i] = centre + offset * step;
      const result = change();
      x[i] = centre;
      return result;
    };
    return (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * step);
  });
}
