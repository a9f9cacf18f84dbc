// Matrices under their mask while they are learned: the step keeps what a block reads of them up to date,
// to the bytes that the mask and the rounding of the values themselves would give.
import { describe, expect, it, vi } from "vitest";
import type { Mask } from "../lib/autograd/ops/gradual-mask.ts";
import { Parameter } from "../lib/calibration/parameters.ts";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { devices } from "./helpers/device.ts";
import { Draw } from "./helpers/random.ts";

// As on a GPU, on every device.
vi.mock("../lib/tensor/precision.ts", async (original) => ({
  ...(await original<object>()),
  precisionOf: () => "bf16",
}));

const [COUNT, SIZE] = [2, 36];
const SHAPE = [COUNT, SIZE, SIZE];

/** Numbers beside ones on the diagonals; rows of large ones are projected. */
function matrices(size: number): Float32Array {
  const data = Float32Array.from(new Draw(3, "f32", true).normal(SHAPE, size).data);
  for (let row = 0; row < COUNT * SIZE; row++) data[row * SIZE + (row % SIZE)] = 1;
  return data;
}

function step(parameter: Parameter, mask: Mask, floor: number, t: number): void {
  scope(() => {
    const { tensor } = parameter.shown(() => mask);
    const gradient = Tensor.from(matrices(0.3), SHAPE, "f32", tensor.device);
    Parameter.update([{ parameter, gradient, rate: 0.02 }], {
      control: { rate: 1, step: t },
      weightDecay: 0.01,
      matrices: { maskOf: () => mask, dominance: floor > 0 ? 0 : 0.9, floor },
    });
  });
}

for (const device of devices()) {
  describe(`masked matrices on ${device}`, () => {
    it.each([0, 0.05])("are those of the values, after steps and new masks, floor %d", (floor) => {
      const before = liveTensors();
      const start = { data: matrices(1), shape: SHAPE, masked: true, multiplied: true };
      const parameter = new Parameter("norm-full.norm1.S", "transform", start, device);
      for (const [t, band] of [3, 3, 3, 17, 17, SIZE].entries()) {
        const mask = { band, sf: 0.1 };
        step(parameter, mask, floor, t + 1);
        scope(() => {
          const shown = parameter.shown(() => mask);
          const fresh = invokeOne("gradual_mask", [parameter.value], { ...mask });
          const rounded = invokeOne("cast", [fresh], { dtype: dtypeCode("bf16") });
          expect(shown.tensor.read()).toEqual(fresh.read());
          expect(shown.rounded?.read()).toEqual(rounded.read());
        });
      }
      parameter.endSteps();
      expect(liveTensors()).toBe(before + 3);
      parameter.dispose();
      expect(liveTensors()).toBe(before);
      parameter.dispose();
      expect(liveTensors()).toBe(before);
    });
  });
}

for (const device of devices()) {
  describe(`masked matrices on ${device}`, () => {
    it.each([0, 0.05])("are those of the values, after steps and new masks, floor %d", (floor) => {
      const before = liveTensors();
      const start = { data: matrices(1), shape: SHAPE, masked: true, multiplied: true };
      const parameter = new Parameter("norm-full.norm1.S", "transform", start, device);
      for (const [t, band] of [3, 3, 3, 17, 17, SIZE].entries()) {
        const mask = { band, sf: 0.1 };
        step(parameter, mask, floor, t + 1);
        scope(() => {
          const shown = parameter.shown(() => mask);
          const fresh = invokeOne("gradual_mask", [parameter.value], { ...mask });
          expect(shown.tensor.read()).toEqual(fresh.read());
          const rounded = invokeOne("cast", [fresh], { dtype: dtypeCode("bf16") });
          expect(shown.rounded?.read()).toEqual(rounded.read());
        });
      }
      parameter.endSteps();
      expect(liveTensors()).toBe(before + 3);
      parameter.dispose();
      expect(liveTensors()).toBe(before);
    });
  });
}

describe("what is not masked", () => {
  it("is shown as it is", () => {
    const start = { data: Float32Array.of(1, 2), shape: [2], masked: false };
    const parameter = new Parameter("norm.norm1.s", "transform", start);
    expect(parameter.shown(() => ({ band: 0, sf: 0 })).tensor).toBe(parameter.value);
    parameter.dispose();
  });
});
