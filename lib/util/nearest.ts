/** The nearest name to a misspelt one. */

/**
 * The candidate that takes the fewest edits to reach, or undefined when none is near: at most 40 %
 * of the longer name may differ, and never more than three letters. Case, and the choice between
 * `_`, `-` and nothing, do not count as edits, because `--group_size` and `--groupsize` are what
 * people who know other tools type.
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const asked = normalize(word);
  let best: string | undefined;
  let bestEdits = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    const known = normalize(candidate);
    const edits = editDistance(asked, known);
    const allowed = Math.min(3, Math.floor(0.4 * Math.max(asked.length, known.length)));
    if (edits <= allowed && edits < bestEdits) {
      best = candidate;
      bestEdits = edits;
    }
  }
  return best;
}

function normalize(word: string): string {
  return word.toLowerCase().replace(/[-_\s]/g, "");
}

/**
 * Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other
 * (the restricted Damerau-Levenshtein distance).
 */
export function editDistance(from: string, to: string): number {
  const row = (): number[] => Array.from({ length: to.length + 1 }, (_, j) => j);
  let beforeLast = row();
  let last = row();
  for (let i = 1; i <= from.length; i++) {
    const current = [i];
    for (let j = 1; j <= to.length; j++) {
      const same = from[i - 1] === to[j - 1];
      let edits = Math.min(
        at(last, j) + 1,
        at(current, j - 1) + 1,
        at(last, j - 1) + (same ? 0 : 1),
      );
      if (i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1]) {
        edits = Math.min(edits, at(beforeLast, j - 2) + 1);
      }
      current.push(edits);
    }
    beforeLast = last;
    last = current;
  }
  return at(last, to.length);
}

function at(row: readonly number[], index: number): number {
  return row[index] ?? Number.POSITIVE_INFINITY;
}
