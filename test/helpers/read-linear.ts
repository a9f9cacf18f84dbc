/** A linear of made-up tensors, read back from a folder. */
import { expect } from "vitest";
import { openCheckpoint } from "../../lib/checkpoint/folder.ts";
import type { PackedLinear } from "../../lib/packed/linear.ts";
import { packedWeights } from "../../lib/packed/open.ts";
import type { Tensors } from "./pack.ts";
import { writeFiles } from "./safetensors-file.ts";
import { writeTensors } from "./tensor-file.ts";

/** Writes tensors as a linear called `p` into an empty folder, and reads it by the reader of `config`. */
export function readLinear(
  dir: string,
  tensors: Tensors,
  config: object,
  [rows, columns]: readonly [number, number],
): PackedLinear {
  const named = Object.entries(tensors).map(([part, tensor]) => [`p.${part}`, tensor] as const);
  writeTensors(`${dir}/model.safetensors`, new Map(named));
  writeFiles(dir, { "config.json": { quantization_config: config } });
  const checkpoint = openCheckpoint(dir);
  try {
    const packed = packedWeights(checkpoint);
    if (!packed) throw new Error("the folder is not taken for a packed one");
    expect(packed.has("p.weight")).toBe(true);
    const spec = { key: "p", name: "p.weight", shape: [rows, columns] };
    packed.check(spec);
    return packed.read(spec);
  } finally {
    checkpoint.close();
  }
}
