/**
 * Matrices that are applied before linears at run time: transform_config of compressed-tensors. A linear P
 * of scheme S computes W (x M / sqrt(n)) with M [n, n] stored as `P.S_input.weight`. Behind a norm that is
 * the residue R of our blocks, which compute h Rt: M = sqrt(n) Rt.
 */

import type { Checkpoint } from "../checkpoint/folder.ts";
import { isJsonObject, type JsonObject, kindOf } from "../util/json.ts";
import { Keys, unread } from "./keys.ts";
import { checkPart, misfit, partName, readRaw, readScales, SCALE_TYPES } from "./parts.ts";

/** Types whose matrices are stored. */
const STORED: readonly string[] = ["random-hadamard", "random-matrix"];

/**
 * Scheme by linear. Throws: AQ_FORMAT for a malformed description, AQ_MODEL for transforms other than a
 * stored matrix before linears that are named one by one.
 */
export function readTransforms(json: JsonObject | null, where: string): Map<string, string> {
  const schemes = new Map<string, string>();
  if (!json) return schemes;
  const groups = new Keys(json, `${where}.transform_config`).object("config_groups") ?? {};
  for (const [name, value] of Object.entries(groups)) {
    const at = `${where}.transform_config.${name.slice(0, 60)}`;
    if (!isJsonObject(value)) throw unread(at, kindOf(value));
    const keys = new Keys(value, at);
    keys.expect("type", STORED);
    if ((value["head_dim"] ?? null) !== null) throw unread(at, "head_dim");
    const places = value["apply"];
    if (!Array.isArray(places)) throw keys.wrong("apply", "an array");
    for (const place of places as unknown[]) {
      for (const target of readTargets(place, at)) {
        if (schemes.has(target)) throw unread(at, `a second transform before ${kindOf(target)}`);
        schemes.set(target, name);
      }
    }
  }
  return schemes;
}

function readTargets(place: unknown, where: string): readonly string[] {
  if (!isJsonObject(place)) throw unread(where, `${kindOf(place)} in "apply"`);
  const keys = new Keys(place, where);
  keys.expect("location", ["input"]);
  if (keys.flag("inverse", false)) throw unread(where, "an inverse transform");
  const ignore = place["ignore"] ?? [];
  if (!Array.isArray(ignore) || ignore.length > 0) throw unread(where, `"ignore"`);
  const targets = place["targets"];
  if (!Array.isArray(targets) || !targets.every((t) => typeof t === "string")) {
    throw keys.wrong("targets", "an array of texts");
  }
  const pattern = targets.find((target) => target.startsWith("re:"));
  if (pattern !== undefined) throw unread(where, `the target ${kindOf(pattern)}`);
  return targets as string[];
}

/** Name of the matrix of a scheme before the linear of this weight. */
export function matrixName(weight: string, scheme: string): string {
  return partName(weight, `${scheme}_input.weight`);
}

/**
 * The residue [n, n] that matrices of these names stand for, which must all be the same: linears behind
 * one norm share it. Throws: AQ_MODEL, AQ_FORMAT, AQ_FILE.
 */
export function readResidue(
  checkpoint: Checkpoint,
  names: readonly string[],
  n: number,
): Float32Array<ArrayBuffer> {
  const [first = "", ...others] = names;
  for (const name of names) checkPart(checkpoint, name, SCALE_TYPES, [n, n]);
  const m = readScales(checkpoint, first, "numbers").values;
  const bytes = Buffer.from(readRaw(checkpoint, first));
  for (const name of others) {
    if (!bytes.equals(readRaw(checkpoint, name))) {
      throw misfit(checkpoint, name, `the matrix of "${first}"`, "another one");
    }
  }
  const residue = new Float32Array(n * n);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) residue[r * n + c] = (m[c * n + r] as number) / Math.sqrt(n);
  }
  return residue;
}
