/** Single bits of written folders, turned over one at a time: each must be found out. */
import * as fs from "node:fs";
import * as path from "node:path";
import fc from "fast-check";
import { expect } from "vitest";
import { verify } from "../../lib/verify.ts";
import { expectAqRejection } from "./expect-error.ts";
import { flip, ggufPlaces, type Place, tensorPlaces } from "./places.ts";

/** Bits that are tried in each kind of tensor of a folder. */
const FLIPS = 3;

/** Flips random bits in a folder's tensors of each kind, one at a time; `run` where it is not beside. */
export async function expectFlipsFound(dir: string, run?: string): Promise<void> {
  const places = fs.existsSync(path.join(dir, "model.gguf")) ? ggufPlaces(dir) : tensorPlaces(dir);
  const kinds = new Map<string, Place[]>();
  for (const place of places) {
    const kind = place.tensor.split(".").at(-1) ?? "";
    kinds.set(kind, [...(kinds.get(kind) ?? []), place]);
  }
  expect(kinds.size).toBeGreaterThan(0);
  for (const [kind, list] of kinds) {
    const place = fc.tuple(fc.constantFrom(...list), fc.nat(), fc.nat(7));
    await fc.assert(
      fc.asyncProperty(place, async ([{ file, offset, bytes }, byte, bit]) => {
        const restore = flip(file, offset + (byte % bytes), bit);
        try {
          const act = verify({ dir, ...(run === undefined ? {} : { run }) });
          await expectAqRejection(act, "AQ_FORMAT", dir);
        } finally {
          restore();
        }
      }),
      { numRuns: kind === "data" ? 4 * FLIPS : FLIPS },
    );
  }
}
