/**
 * Steps that are recorded once and run again on other windows: a GPU then takes a step in one call, where
 * JavaScript would need longer for its hundreds of ops than the GPU does. Results are the same bytes.
 */

import { type CapturedGraph, capture, recordsSteps } from "../tensor/capture.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { BlockProblem } from "./problem.ts";
import { enqueueStep, readStatus, type StepParts, type StepResult } from "./train-step.ts";

/** Tokens times weights of a step that takes a GPU about as long as JavaScript takes for its ops. */
const MOST_WORK = 2 ** 37;

/**
 * Whether recording steps of a block pays. Where a GPU is busy with a step for longer than JavaScript is,
 * the next one is ready in time anyway, and recordings would only take their own time and memory.
 */
export function isWorthRecording({
  model,
  inputs,
  settings,
}: Pick<BlockProblem, "model" | "inputs" | "settings">): boolean {
  const weights = model.linears.reduce((sum, { out, in: columns }) => sum + out * columns, 0);
  const windows = Math.min(settings.batch, inputs.windows);
  return windows * inputs.tokens * weights < MOST_WORK;
}

/** A step as the device runs it again and again. */
class RecordedStep {
  readonly #inputs: readonly Tensor[];
  readonly #schedule: Tensor;
  readonly #status: Tensor;
  readonly #graph: CapturedGraph;

  constructor(inputs: readonly Tensor[], schedule: Tensor, status: Tensor, graph: CapturedGraph) {
    this.#inputs = inputs;
    this.#schedule = schedule;
    this.#status = status;
    this.#graph = graph;
  }

  /** Records a step without running it; undefined where the device does not record such steps. */
  static record(parts: StepParts, device: string): RecordedStep | undefined {
    const owned: Tensor[] = [];
    const own = (tensor: Tensor): Tensor => {
      owned.push(keep(tensor));
      return tensor;
    };
    let step: RecordedStep | undefined;
    try {
      const inputs = scope(() =>
        parts.inputs().map(({ shape, dtype }) => own(Tensor.empty(shape, dtype, device))),
      );
      const schedule = own(Tensor.empty([2], "f64", device));
      const graph = capture(device, () => own(enqueueStep(parts, inputs, schedule)));
      const status = owned.at(-1) as Tensor;
      if (graph) step = new RecordedStep(inputs, schedule, status, graph);
      return step;
    } finally {
      if (!step) for (const tensor of owned) tensor.dispose();
    }
  }

  /** Enqueues it with the inputs, rate and step of `parts`. */
  run(parts: StepParts): Promise<StepResult> {
    scope(() => {
      for (const [i, input] of parts.inputs().entries()) {
        invokeOne("cast", [input], { dtype: dtypeCode(input.dtype) }, this.#inputs[i]);
      }
    });
    this.#schedule.write(Float64Array.of(parts.rate, parts.step));
    this.#graph.launch();
    return readStatus(this.#status);
  }

  dispose(): void {
    this.#graph.dispose();
    for (const tensor of [...this.#inputs, this.#schedule, this.#status]) tensor.dispose();
  }
}

/** The recording of the steps at hand, which all belong to one state. Dispose it before the state. */
export class StepRecorder {
  readonly #device: string;
  #repeats: string | undefined;
  #step: RecordedStep | undefined;
  #isOff: boolean;

  constructor(device: string) {
    this.#device = device;
    this.#isOff = !recordsSteps(device);
  }

  /**
   * What to run for a step; undefined: the step is to run op by op. So does the first of its kind, which
   * makes what the ops need at their first use. It finds the memory of the recording before it free.
   */
  find(parts: StepParts): RecordedStep | undefined {
    if (this.#isOff || parts.watch) return undefined;
    if (parts.repeats !== this.#repeats) {
      this.dispose();
      this.#repeats = parts.repeats;
      return undefined;
    }
    if (parts.repeats === undefined) return undefined;
    this.#step ??= RecordedStep.record(parts, this.#device);
    this.#isOff = this.#step === undefined;
    return this.#step;
  }

  dispose(): void {
    this.#step?.dispose();
    this.#step = undefined;
    this.#repeats = undefined;
  }
}
