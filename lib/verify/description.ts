/** What a folder says of its model beside the tensors: the same as the run's output, but for the packing. */

import * as path from "node:path";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { hasFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { AQ_CONFIG_NAME } from "../export/aq-config.ts";
import { isOwnType } from "../models/registry.ts";
import { packedWeights } from "../packed/open.ts";
import { type JsonObject, readJsonFile } from "../util/json.ts";
import type { SavedRun } from "./state.ts";

/** Keys of config.json that a format may set: how weights are packed, and the type of the others. */
const FREE: ReadonlySet<string> = new Set(["quantization_config", "dtype", "torch_dtype"]);

/** Keys that differ where a format carries what makes the run's own output one of ours alone. */
const TYPE: readonly string[] = ["model_type", "architectures"];

/** Throws: AQ_FORMAT where config.json describes another model, or aq_config.json another run. */
export function checkDescription(run: SavedRun, folder: Checkpoint): void {
  const isStock =
    isOwnType(run.output.config["model_type"]) && !isOwnType(folder.config["model_type"]);
  const free = isStock ? new Set([...FREE, ...TYPE]) : FREE;
  checkKeys(path.join(folder.dir, "config.json"), folder.config, run.output.config, free);
  const scheme = packedWeights(folder);
  const { wbits, groupSize } = run.config.scheme;
  if (scheme && (scheme.bits !== wbits || !isSameGroup(scheme.group, groupSize))) {
    const words = (bits: number, group: number): string => `${bits} bits, group size ${group}`;
    throw differs(
      `quantization_config of ${folder.dir}`,
      words(wbits, groupSize),
      words(scheme.bits, scheme.group),
    );
  }
  // Our own folders need what it says of activations.
  if (scheme?.format !== "aq" && !hasFile(folder.dir, AQ_CONFIG_NAME)) return;
  const file = path.join(folder.dir, AQ_CONFIG_NAME);
  const own = readJsonFile(path.join(run.dir, AQ_CONFIG_NAME));
  checkKeys(file, readJsonFile(file), own, new Set(["written_by"]));
}

/** AWQ has no name for whole channels but their size, which is not the same for all linears. */
function isSameGroup(group: number, groupSize: number): boolean {
  return group === groupSize || groupSize === 0;
}

function checkKeys(
  file: string,
  got: JsonObject,
  expected: JsonObject,
  free: ReadonlySet<string>,
): void {
  for (const key of new Set([...Object.keys(expected), ...Object.keys(got)])) {
    if (free.has(key)) continue;
    const [wanted, found] = [expected[key], got[key]].map((value) => JSON.stringify(value));
    if (wanted !== found) throw differs(`"${key}" in ${file}`, wanted, found);
  }
}

function differs(what: string, expected: string | undefined, got: string | undefined): AqError {
  const short = (text: string | undefined): string => (text ?? "nothing").slice(0, 80);
  return new AqError(
    "AQ_FORMAT",
    `${what} differs from the run: expected ${short(expected)}, got ${short(got)}; export it again`,
  );
}
