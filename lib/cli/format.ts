/** What the commands show on a terminal: numbers as a person reads them, bars and columns. */

export {
  byteSize,
  duration,
  grouped,
  percent,
  perplexity,
  plural,
  significant,
} from "../util/format.ts";

/** A bar of `width` cells; `fraction` is clamped to 0..1. */
export function bar(fraction: number, width: number): string {
  const share = Math.min(1, Math.max(0, fraction));
  const full = Math.round((Number.isFinite(share) ? share : 0) * width);
  return "█".repeat(full) + "░".repeat(width - full);
}

/** Rows as columns, aligned left, or right where `right` says so; no trailing spaces. */
export function table(
  rows: readonly (readonly string[])[],
  right: readonly boolean[] = [],
): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    });
  }
  return rows.map((row) =>
    row
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return right[column] === true ? cell.padStart(width) : cell.padEnd(width);
      })
      .join("  ")
      .trimEnd(),
  );
}
