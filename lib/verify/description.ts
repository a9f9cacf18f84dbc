/** What a folder says of its model beside the tensors: the same as the run's output, but for the packing. */

import * as path from "node:path";
import type { Checkpoint } from "../checkpoint/folder.ts";
import { hasFile } from "../checkpoint/source-files.ts";
import { AqError } from "../errors.ts";
import { AQ_CONFIG_NAME } from "../export/aq-config.ts";
import { isOwnType } from "../models/registry.ts";
import { type PackedWeights, packedWeights } from "../packed/open.ts";
import { quantizesTokens } from "../quant/scheme.ts";
import { isJsonObject, type JsonObject, readJsonFile } from "../util/json.ts";
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
  if (scheme) checkScheme(run, folder, scheme);
  if (scheme && scheme.format !== "aq") checkKept(run, folder);
  // Our own folders need what it says of activations.
  if (scheme?.format !== "aq" && !hasFile(folder.dir, AQ_CONFIG_NAME)) return;
  const file = path.join(folder.dir, AQ_CONFIG_NAME);
  const own = readJsonFile(path.join(run.dir, AQ_CONFIG_NAME));
  checkKeys(file, readJsonFile(file), own, new Set(["written_by"]));
}

function checkScheme(run: SavedRun, folder: Checkpoint, got: PackedWeights): void {
  const { wbits, groupSize, numbers = null } = run.config.scheme;
  const words = (bits: number, group: number, kind: string | null): string =>
    kind ?? `${bits} bits, group size ${group}`;
  const what = `quantization_config of ${folder.dir}`;
  const isSame = got.bits === wbits && got.numbers === numbers && isSameGroup(got.group, groupSize);
  if (!isSame) {
    throw differs(what, words(wbits, groupSize, numbers), words(got.bits, got.group, got.numbers));
  }
  // Our own folders say it in aq_config.json.
  if (!numbers || got.format === "aq") return;
  const say = (isQuantized: boolean): string => `activations in ${isQuantized ? "4" : "16"} bits`;
  const wanted = quantizesTokens(run.config.scheme);
  if (wanted !== (got.tokens !== null)) throw differs(what, say(wanted), say(!wanted));
}

/** Loaders look for packed tensors of every linear that the description does not leave out. */
function checkKept(run: SavedRun, folder: Checkpoint): void {
  const leavesOut = exclusions(folder.quantization ?? {});
  for (const { name } of run.blockSpecs()) {
    const module = name.replace(/\.weight$/, "");
    if (!run.isKept(name) || leavesOut(module)) continue;
    const missing = "a description that packs all linears";
    throw differs(`quantization_config of ${folder.dir}`, `${module} left out`, missing);
  }
}

/** Keys under which formats list modules that are not quantized. */
const LISTS: readonly string[] = ["ignore", "modules_to_not_convert"];

/** By the lists, or by GPTQ's rules, which are patterns; ours fit one name each. */
function exclusions(json: JsonObject): (module: string) => boolean {
  const lists = LISTS.map((key) => json[key]).filter(Array.isArray);
  const names = new Set<unknown>(lists.flat());
  const { dynamic } = json;
  const rules = isJsonObject(dynamic) ? dynamic : {};
  return (module) =>
    names.has(module) || Object.hasOwn(rules, `-:^${module.replaceAll(".", "\\.")}$`);
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
