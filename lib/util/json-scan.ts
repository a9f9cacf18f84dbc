/**
 * A walk over a JSON text that shows what JSON.parse hides: every key, also a repeated one, and the
 * spelling of every number. The text must already be known to be valid JSON.
 */

/** A place: `/` and a quoted key or an index for each step, e.g. `/"layers"/0/"size"`. */
export interface JsonVisitor {
  readonly key?: (path: string) => void;
  readonly number?: (path: string, literal: string) => void;
}

interface Frame {
  readonly path: string;
  readonly isObject: boolean;
  index: number;
  key: string | null;
}

const NUMBER = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;

/** Visits the keys and numbers of a valid JSON text in their order. Needs no recursion. */
export function scanJson(text: string, visitor: JsonVisitor): void {
  const stack: Frame[] = [];
  for (let at = 0; at < text.length; ) {
    const frame = stack.at(-1);
    const c = text.charCodeAt(at);
    if (c === 0x22) {
      const end = stringEnd(text, at);
      if (frame?.isObject && frame.key === null) {
        // Decoded and encoded again, so that two spellings of one key (escapes) are one key.
        frame.key = JSON.stringify(JSON.parse(text.slice(at, end)));
        visitor.key?.(placeOf(frame));
      }
      at = end;
      continue;
    }
    if (c === 0x7b || c === 0x5b) {
      stack.push({ path: placeOf(frame), isObject: c === 0x7b, index: 0, key: null });
    } else if (c === 0x7d || c === 0x5d) {
      stack.pop();
    } else if (c === 0x2c && frame) {
      frame.index++;
      frame.key = null;
    } else if (c === 0x2d || (c >= 0x30 && c <= 0x39)) {
      NUMBER.lastIndex = at;
      const literal = NUMBER.exec(text)?.[0] ?? "";
      visitor.number?.(placeOf(frame), literal);
      at += Math.max(1, literal.length);
      continue;
    }
    at++;
  }
}

/** How many arrays and objects of a valid JSON text lie in each other at its deepest place. */
export function depthOf(text: string): number {
  let depth = 0;
  let deepest = 0;
  for (let at = 0; at < text.length; ) {
    const c = text.charCodeAt(at);
    if (c === 0x22) {
      at = stringEnd(text, at);
      continue;
    }
    if (c === 0x7b || c === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (c === 0x7d || c === 0x5d) depth--;
    at++;
  }
  return deepest;
}

function placeOf(frame: Frame | undefined): string {
  if (!frame) return "";
  return `${frame.path}/${frame.isObject ? frame.key : frame.index}`;
}

/** Index after the closing quote of the string that opens at `start`. */
function stringEnd(text: string, start: number): number {
  let at = start + 1;
  while (at < text.length && text.charCodeAt(at) !== 0x22) {
    at += text.charCodeAt(at) === 0x5c ? 2 : 1;
  }
  return at + 1;
}
