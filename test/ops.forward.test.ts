// Every op against its float64 reference, on every device, in every float type it takes.
import { describe, expect, it } from "vitest";
import { label } from "./cases/case.ts";
import { CASES } from "./cases/index.ts";
import { devices } from "./helpers/device.ts";
import { compareSet, variantName, variants } from "./helpers/run-op.ts";

for (const device of devices()) {
  for (const op of CASES.filter(({ gradient }) => !gradient)) {
    describe(`${op.op} on ${device}`, () => {
      for (const variant of variants(op)) {
        it.each(op.sets.map((dims) => [label(dims), dims] as const))(
          `equals the formula in ${variantName(variant)}: %s`,
          (_, dims) => expect(compareSet(op, dims, { device, ...variant })).toBeUndefined(),
        );
      }
    });
  }
}
