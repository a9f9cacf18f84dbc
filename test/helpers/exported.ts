/** Made-up runs of integers and 4-bit floats, exported: for tests of what was written. */
import * as fs from "node:fs";
import * as path from "node:path";
import { expect } from "vitest";
import { exportRun } from "../../lib/export-run.ts";
import type { FormatName } from "../../lib/export-types.ts";
import {
  SMALL_SHAPE,
  type SyntheticRun,
  type SyntheticSettings,
  syntheticRun,
} from "./synthetic-run.ts";
import { tempFolders } from "./temp-folder.ts";
import { readTensors, type StoredTensor } from "./tensor-file.ts";

export interface Exported {
  readonly run: SyntheticRun;
  readonly out: string;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

export type Wish = Partial<SyntheticSettings> & { readonly numbers?: "nvfp4" | "mxfp4" };

function settings({ numbers, ...wish }: Wish): SyntheticSettings {
  const groupSize = numbers === "mxfp4" ? 32 : 16;
  const own = numbers ? { numbers, groupSize, symmetric: true } : { symmetric: false };
  return { ...SMALL_SHAPE, bits: 4, seed: 11, ...own, ...wish };
}

/** Exports such runs, which verify reads back; the folders are removed after each test of the file. */
export function exporter(): (wish: Wish, format: FormatName) => Promise<Exported> {
  const tempFolder = tempFolders();
  return async (wish, format) => {
    const [dir, out] = [path.join(tempFolder(), "run"), path.join(tempFolder(), "out")];
    const run = syntheticRun(dir, settings(wish));
    const result = await exportRun({ run: dir, format, out });
    expect(result.verified.linears).toBe(run.linears.length);
    const file = path.join(out, "model.safetensors");
    return { run, out, tensors: fs.existsSync(file) ? readTensors(file) : new Map() };
  };
}
