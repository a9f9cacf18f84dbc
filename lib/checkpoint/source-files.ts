/**
 * Files of a checkpoint folder that someone else made: a name in it must not lead out of it.
 *
 * Symbolic links are followed only to places inside the folder, with one exception: the download cache
 * of the Hugging Face hub, `models--x/snapshots/<revision>/`, holds nothing but links to `models--x/blobs/`.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { AqError } from "../errors.ts";
import { fileError } from "../util/fs.ts";

/** True for a name that can only mean an entry of the folder itself. */
export function isPlainName(name: string): boolean {
  return name !== "" && name !== "." && name !== ".." && !/[/\\:\0]/.test(name);
}

/** True when the folder has an entry of this name that is a file or a link to one. */
export function hasFile(dir: string, name: string): boolean {
  return fs.statSync(path.join(dir, name), { throwIfNoEntry: false })?.isFile() ?? false;
}

/**
 * Path of a file of the folder, with links resolved.
 *
 * Throws: AQ_FILE when it is missing, no regular file, or a link that leaves the folder.
 */
export function sourceFile(dir: string, name: string): string {
  const file = path.join(dir, name);
  let real: string;
  let home: string;
  try {
    real = fs.realpathSync(file);
    home = fs.realpathSync(dir);
    if (!fs.statSync(real).isFile()) {
      throw new AqError("AQ_FILE", `${file} is not a regular file.`);
    }
  } catch (error) {
    throw fileError("read", file, error);
  }
  const allowed = [home];
  const snapshots = path.dirname(home);
  if (path.basename(snapshots) === "snapshots") {
    allowed.push(path.join(path.dirname(snapshots), "blobs"));
  }
  if (!allowed.some((root) => real.startsWith(root + path.sep))) {
    throw new AqError(
      "AQ_FILE",
      `${file} is a link to ${real}, outside the checkpoint's folder; put the file itself there.`,
    );
  }
  return real;
}
