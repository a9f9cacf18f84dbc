// Every op against its float64 reference, on every device, in every float type it takes.
import { describe, expect, it } from "vitest";
import { label } from "./cases/case.ts";
import { CASES } from "./cases/index.ts";
import { devices } from "./helpers/device.ts";
import { compareSet } from "./helpers/run-op.ts";

for (const device of devices()) {
  for (const op of CASES.filter(({ gradient }) => !gradient)) {
    describe(`${op.op} on ${device}`, () => {
      for (const dtype of op.dtypes ?? (["f32", "f64"] as const)) {
        it.each(op.sets.map((dims) => [label(dims), dims] as const))(
          `equals the formula in ${dtype}: %s`,
          (_, dims) => expect(compareSet(op, dims, { device, dtype })).toBeUndefined(),
        );
      }
    });
  }
}
