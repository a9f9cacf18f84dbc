// Gradients, twice: every gradient kernel against central differences of the float64 forward or,
// where rounding makes differences meaningless, against the written rule; and every pair of
// lib/autograd/ops on a tape against differences of the engine itself.
import { describe, expect, it } from "vitest";
import { gradcheck } from "../lib/autograd/gradcheck.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { label } from "./cases/case.ts";
import { GRAPH_CASES } from "./cases/graph.ts";
import type { GraphCase } from "./cases/graph-case.ts";
import { CASES } from "./cases/index.ts";
import { difference } from "./helpers/compare.ts";
import { devices } from "./helpers/device.ts";
import { compareSet, variantName, variants } from "./helpers/run-op.ts";

for (const device of devices()) {
  for (const op of CASES) {
    if (!op.gradient) continue;
    const source = op.gradient.kind === "smooth" ? "differences" : "rule";
    describe(`${op.op} on ${device}`, () => {
      for (const variant of variants(op)) {
        it.each(op.sets.map((dims) => [label(dims), dims] as const))(
          `is the ${source} of ${op.gradient?.forward} in ${variantName(variant)}: %s`,
          (_, dims) => expect(compareSet(op, dims, { device, ...variant })).toBeUndefined(),
        );
      }
    });
  }
}

/** Gradients that the tape gives for every input of a case. */
function tapeGradients({ inputs, loss }: GraphCase): readonly Float64Array[] {
  return scope(() => {
    const tape = new Tape();
    const vars = inputs.map(({ data, shape }) => tape.parameter(Tensor.from(data, shape)));
    tape.backward(loss(tape, vars));
    return vars.map((value) => Float64Array.from(tape.gradient(value)?.read() ?? []));
  });
}

describe("the pairs on a tape", () => {
  for (const graphCase of GRAPH_CASES) {
    const { pairs, title, inputs, loss, rule } = graphCase;
    it(`differentiate ${title} (${pairs.join(", ")})`, () => {
      const before = liveTensors();
      if (rule) {
        const actual = tapeGradients(graphCase);
        for (const [i, expected] of rule().entries()) {
          const tolerance = { rtol: 1e-6, atol: 1e-9 };
          expect(
            difference(`gradient of input ${i}`, actual[i] ?? [], expected, tolerance),
          ).toBeUndefined();
        }
      } else {
        expect(gradcheck(loss, inputs).error).toBeLessThan(1e-7);
      }
      expect(liveTensors()).toBe(before);
    });
  }
});
