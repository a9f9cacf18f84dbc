// The loop around optimizer steps: one is in flight while the next is recorded, none is left behind, and
// a step may have several windows.
import { setImmediate } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Var } from "../lib/autograd/graph.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import type { TrainHooks } from "../lib/calibration/attempts.ts";
import { disposeParameters, NO_MATRICES, Parameter } from "../lib/calibration/parameters.ts";
import { affinePhase } from "../lib/calibration/phases/affine.ts";
import { disposeRounding, roundPhase } from "../lib/calibration/phases/round.ts";
import type { BlockProblem } from "../lib/calibration/problem.ts";
import type { StepRecorder } from "../lib/calibration/step-recorder.ts";
import type { StepParts, StepResult } from "../lib/calibration/train-step.ts";
import { trainSteps } from "../lib/calibration/train-steps.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { withTinyProblem } from "./helpers/tiny-problem.ts";

let live: number;
beforeEach(() => {
  live = liveTensors();
});
afterEach(() => {
  expect(liveTensors()).toBe(live);
});

describe("steps", () => {
  const log: string[] = [];
  let parameter: Parameter;
  beforeEach(() => {
    log.length = 0;
    const start = { data: Float32Array.of(3, -1), shape: [2], masked: false };
    parameter = new Parameter("p", "gain", start);
  });

  /** Step n towards `target`, with notes of what is called. */
  const towards =
    (target: number) =>
    (n: number): StepParts => ({
      parameters: new Map([["p", parameter.value]]),
      inputs: () => [Tensor.from(Float32Array.of(target, target))],
      record(tape, vars, [goal]) {
        log.push(`record ${n}`);
        return mse(tape, vars.get("p") as Var, tape.constant(goal as Tensor));
      },
      apply(gradients, control) {
        log.push(`apply ${n}`);
        const gradient = gradients.get("p");
        const rule = { control, weightDecay: 0, matrices: NO_MATRICES };
        return Parameter.update([{ parameter, gradient, rate: 1 }], rule);
      },
      rate: 0.5,
      step: n,
      watch: undefined,
    });

  const settle =
    (goesOn: (n: number) => boolean = () => true) =>
    async (n: number, { applied }: StepResult): Promise<boolean> => {
      log.push(`${applied ? "applied" : "skipped"} ${n}`);
      return goesOn(n);
    };

  it("are recorded while the last is in flight, and applied when it is known", async () => {
    await trainSteps([1, 2, 3], towards(1), settle());
    expect(log).toEqual([
      ...["record 1", "apply 1"],
      ...["record 2", "applied 1", "apply 2"],
      ...["record 3", "applied 2", "apply 3", "applied 3"],
    ]);
    expect(parameter.value.floats()[0]).toBeCloseTo(1.5, 1);
    parameter.dispose();
  });

  it("change nothing where they are not finite", async () => {
    await trainSteps([1, 2], towards(Number.NaN), settle());
    expect(log.filter((line) => line.startsWith("skipped"))).toHaveLength(2);
    expect([...parameter.value.floats()]).toEqual([3, -1]);
    parameter.dispose();
  });

  it("end where they are told to, the next one dropped", async () => {
    await trainSteps(
      [1, 2, 3],
      towards(1),
      settle((n) => n < 2),
    );
    expect(log.slice(-2)).toEqual(["record 3", "applied 2"]);
    parameter.dispose();
  });

  it.each(["record", "apply", "settle"])("pass on what %s throws", async (where) => {
    const parts = (n: number): StepParts => {
      const own = towards(1)(n);
      const fail = (): never => {
        throw new RangeError(where);
      };
      return {
        ...own,
        ...(n === 2 && (where === "record" || where === "apply") && { [where]: fail }),
      };
    };
    const settled = settle((n) => {
      if (where === "settle" && n === 1) throw new RangeError(where);
      return true;
    });
    await expect(trainSteps([1, 2, 3], parts, settled)).rejects.toThrow(new RangeError(where));
    parameter.dispose();
  });
});

describe("recorded steps", () => {
  const log: string[] = [];
  beforeEach(() => {
    log.length = 0;
  });

  /** Runs steps that a device has recorded; those from `failing` on fail. */
  function runAll(count: number, goesOn: (n: number) => boolean, failing = 9): Promise<void> {
    const run = async ({ step }: StepParts): Promise<StepResult> => {
      log.push(`run ${step}`);
      await setImmediate();
      if (step >= failing) throw new RangeError(`step ${step}`);
      return { loss: 0, applied: true, margin: null };
    };
    const recorder = { find: () => ({ run }) } as unknown as StepRecorder;
    return trainSteps(
      Array.from({ length: count }, (_, i) => i + 1),
      (step) => ({ step }) as StepParts,
      async (n) => {
        log.push(`settled ${n}`);
        return goesOn(n);
      },
      recorder,
    );
  }

  it("are given to the device before the last one is known, one ahead", async () => {
    await runAll(3, () => true);
    expect(log).toEqual(["run 1", "run 2", "settled 1", "run 3", "settled 2", "settled 3"]);
  });

  it("end where they are told to", async () => {
    await runAll(4, (n) => n < 2);
    expect(log).toEqual(["run 1", "run 2", "settled 1", "run 3", "settled 2"]);
  });

  it("pass on what the first that fails says, though the next fails too", async () => {
    await expect(runAll(4, () => true, 2)).rejects.toThrow("step 2");
    expect(log).toEqual(["run 1", "run 2", "settled 1", "run 3"]);
    await setImmediate();
  });
});

interface Seen {
  readonly gradients: readonly ReadonlyMap<string, Float32Array>[];
  readonly steps: readonly (readonly [step: number, steps: number, loss: number])[];
  readonly losses: readonly number[];
}

/** Trains the affine phase, and shows all of its steps. */
async function train(problem: BlockProblem): Promise<Seen> {
  const gradients: ReadonlyMap<string, Float32Array>[] = [];
  const steps: (readonly [number, number, number])[] = [];
  const hooks: TrainHooks = {
    watch: (all) => gradients.push(new Map([...all].map(([name, g]) => [name, g.floats()]))),
    onStep: (_epoch, step, count, loss) => steps.push([step, count, loss]),
  };
  const { parameters, losses } = await affinePhase(problem, hooks);
  disposeParameters(parameters);
  return { gradients, steps, losses };
}

const withBatch = (problem: BlockProblem, batch: number): BlockProblem => ({
  ...problem,
  settings: { ...problem.settings, batch },
});

describe("a batch of windows", () => {
  it.each([4, 16])(
    "has the mean of their losses and gradients, %d-bit activations",
    async (abits) => {
      // Rates of 0: both steps of one window see the start.
      await withTinyProblem(2, { epochs: 1, abits, letLr: 0, lwcLr: 0 }, async (problem) => {
        const one = await train({ ...problem, augTargets: problem.inputs });
        const two = await train({ ...withBatch(problem, 2), augTargets: problem.inputs });
        const [first, second] = one.gradients;
        expect(two.steps).toHaveLength(1);
        expect(two.losses[0]).toBeCloseTo(one.losses[0] as number, 5);
        expect(two.steps[0]?.[2]).toBeCloseTo(one.losses[0] as number, 5);
        expect(two.gradients[0]?.size).toBeGreaterThan(10);
        const norm = (data: Float32Array): number => Math.hypot(...data);
        const sizes = [...(two.gradients[0]?.values() ?? [])].map(norm);
        for (const [name, g] of two.gradients[0] as ReadonlyMap<string, Float32Array>) {
          const [a, b] = [first?.get(name), second?.get(name)] as [Float32Array, Float32Array];
          const apart = norm(g.map((x, i) => x - ((a[i] as number) + (b[i] as number)) / 2));
          // What cannot change the loss has gradients that are rounding alone.
          expect(apart, name).toBeLessThan(1e-4 * norm(g) + 1e-6 * Math.max(...sizes));
        }
      });
    },
  );

  it("may be smaller at the end of an epoch, whose loss weighs windows alike", async () => {
    await withTinyProblem(3, { epochs: 2, letLr: 0, lwcLr: 0 }, async (problem) => {
      const alone = await train(problem);
      const { steps, losses } = await train(withBatch(problem, 2));
      expect(steps.map(([step, count]) => [step, count])).toEqual([1, 2, 3, 4].map((n) => [n, 4]));
      const [a, b, c] = alone.steps.map(([, , loss]) => loss) as [number, number, number];
      expect(steps[0]?.[2]).toBeCloseTo((a + b) / 2, 5);
      expect(steps[1]?.[2]).toBeCloseTo(c, 5);
      expect(losses).toHaveLength(2);
      expect(losses[1]).toBeCloseTo((a + b + c) / 3, 5);
      const all = await train(withBatch(problem, 8));
      expect(all.steps.map(([step, count]) => [step, count])).toEqual([1, 2].map((n) => [n, 2]));
    });
  });

  it("rounds as well", async () => {
    await withTinyProblem(3, { epochs: 1 }, async (problem) => {
      const settings = { ...problem.settings, roundEpochs: 2, batch: 2 };
      const steps: number[] = [];
      const { state, losses } = await roundPhase({ ...problem, settings }, problem.weights, [], {
        onStep: (_epoch, step) => steps.push(step),
      });
      expect(steps).toEqual([1, 2, 3, 4]);
      expect(losses.every(Number.isFinite)).toBe(true);
      if (state) disposeRounding(state);
    });
  });
});
