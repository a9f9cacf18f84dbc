/** Plain-text files: reading them strictly, and the calibration text that comes with the package. */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError } from "../util/fs.ts";
import { packageRoot } from "../util/package.ts";

/** Texts are held as one string, which JavaScript limits to about half a billion characters. */
const MAX_TEXT_BYTES = 256 * 2 ** 20;

/**
 * Reads a UTF-8 text file as it is, line ends included; only a byte-order mark at its start is dropped.
 *
 * Throws: AQ_FILE when it is missing, empty or too large, AQ_FORMAT when it is not UTF-8.
 */
export function readTextFile(file: string): string {
  let bytes: Buffer;
  try {
    const { size } = fs.statSync(file);
    if (size > MAX_TEXT_BYTES) {
      throw new AqError(
        "AQ_FILE",
        `${file} has ${size} bytes, expected at most ${MAX_TEXT_BYTES}; a part of it is enough.`,
      );
    }
    bytes = fs.readFileSync(file);
  } catch (error) {
    throw fileError("read the text", file, error);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    const hint = isUtf16(bytes) ? "it looks like UTF-16" : `line ${badLine(bytes)} has other bytes`;
    throw new AqError("AQ_FORMAT", `${file} is not UTF-8 text (${hint}); save it as UTF-8.`, {
      cause: error,
    });
  }
  if (text.trim() === "") throw new AqError("AQ_FILE", `The text ${file} is empty.`);
  return text;
}

/**
 * Path of the text that calibration uses when none is named: 200 KB of public-domain books.
 *
 * Throws: AQ_ADDON when the package is incomplete.
 */
export function defaultTextPath(): string {
  return path.join(packageRoot(), "assets", "calibration.txt");
}

function isUtf16(bytes: Buffer): boolean {
  const [a, b] = bytes;
  return (a === 0xff && b === 0xfe) || (a === 0xfe && b === 0xff);
}

/** Number of the first line that is not UTF-8; a line feed is never part of another character. */
function badLine(bytes: Buffer): number {
  let line = 1;
  for (let at = 0; at < bytes.length; line++) {
    const end = bytes.indexOf(0x0a, at);
    const stop = end < 0 ? bytes.length : end + 1;
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(at, stop));
    } catch {
      return line;
    }
    at = stop;
  }
  return line;
}
