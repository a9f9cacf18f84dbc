/** Axes: from values to positions, and where the ticks go. */

export interface Tick {
  readonly value: number;
  readonly label: string;
}

export interface Scale {
  /** 0 at the low end of the axis, 1 at the high end. */
  at(value: number): number;
  readonly ticks: readonly Tick[];
}

const finite = (values: readonly number[]): number[] => values.filter((v) => Number.isFinite(v));

/** From zero to a round number that holds all values. */
export function linearScale(values: readonly number[], label: (value: number) => string): Scale {
  return evenScale(0, Math.max(0, ...finite(values)), label);
}

/** From one round number to another, as narrow as the values allow. */
export function rangeScale(values: readonly number[], label: (value: number) => string): Scale {
  const all = finite(values);
  return all.length === 0
    ? evenScale(0, 1, label)
    : evenScale(Math.min(...all), Math.max(...all), label);
}

function evenScale(from: number, to: number, label: (value: number) => string): Scale {
  // A span of nothing would put the ticks on top of each other.
  const step = niceStep((to - from || Math.abs(to) || 1) / 4);
  const first = Math.floor(from / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(to / step - 1e-9));
  const [low, high] = [first * step, last * step];
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
  return {
    at: (value) => (value - low) / (high - low),
    ticks: ticks.map((value) => ({ value, label: label(value) })),
  };
}

/** 1, 2 or 5 times a power of ten, at least `raw`. */
function niceStep(raw: number): number {
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * (1 - 1e-9)) ?? 10;
  return step * power;
}

/**
 * Logarithmic, over the positive values: whole decades where they span several, else ticks at 1, 2
 * and 5, and at every digit over less than half a decade.
 */
export function logScale(values: readonly number[]): Scale {
  const positive = finite(values).filter((v) => v > 0);
  if (positive.length === 0) positive.push(1);
  let low = Math.log10(Math.min(...positive));
  let high = Math.log10(Math.max(...positive));
  const pad = Math.max(0.03, 0.05 * (high - low));
  low -= pad;
  high += pad;
  const span = high - low;
  if (span > 2.5) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  const digits = span > 2.5 ? [1] : span > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const ticks: number[] = [];
  for (let exponent = Math.floor(low); exponent <= Math.ceil(high); exponent++) {
    for (const digit of digits) ticks.push(digit * 10 ** exponent);
  }
  const every = span > 2.5 ? Math.ceil((high - low) / 6) : 1;
  const shown = ticks.filter((tick, i) => {
    const at = Math.log10(tick);
    return at >= low - 1e-9 && at <= high + 1e-9 && i % every === 0;
  });
  return {
    at: (value) => (Math.log10(value) - low) / (high - low),
    ticks: shown.map((value) => ({ value, label: power(value) })),
  };
}

/** "0.02", "300", "1e-7". */
function power(value: number): string {
  if (value >= 1e-3 && value < 1e4) return String(Number(value.toPrecision(2)));
  return value.toExponential(value.toPrecision(2).includes(".5") ? 1 : 0).replace("e+", "e");
}

/** Whole numbers from 1 to `count`, few enough to stand side by side. */
export function countTicks(count: number, most = 8): number[] {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => count / s <= most) ?? 5000;
  const ticks = step === 1 ? [] : [1];
  for (let n = step; n <= count; n += step) ticks.push(n);
  return ticks;
}
