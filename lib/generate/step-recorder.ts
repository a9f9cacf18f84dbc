/**
 * Steps of a decoder that are recorded once for each number of tokens and run again with others: a token
 * of a small model takes a GPU less time than JavaScript takes for its ops. Results are the same bytes.
 */

import { type CapturedGraph, capture, recordsSteps } from "../tensor/capture.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";

/** A step's tokens on the device, i32 [3, M]: slots, positions, ids. */
export type StepInputs = Tensor;

/** Steps with so many tokens that the device takes longer for their ops than JavaScript does. */
const MOST_TOKENS = 128;
/** Recordings that are kept; the one that was not used for longest goes. */
const MOST_RECORDINGS = 32;

interface Recording {
  readonly inputs: StepInputs;
  readonly logits: Tensor;
  readonly graph: CapturedGraph;
}

export class StepRecorder {
  readonly #device: string;
  readonly #step: (inputs: StepInputs) => Tensor;
  /** By number of tokens, in the order of use; undefined: it ran once, op by op. */
  readonly #recordings = new Map<number, Recording | undefined>();
  #isOff: boolean;

  /** `step` enqueues a step of M tokens and returns the logits [M, V] of all. */
  constructor(device: string, step: (inputs: StepInputs) => Tensor) {
    this.#device = device;
    this.#step = step;
    this.#isOff = !recordsSteps(device);
  }

  /**
   * Enqueues a step with such inputs; undefined: run it op by op. So is the first of its kind, which makes
   * what the ops need at their first use. The caller disposes the logits; the next run of the same number
   * of tokens writes them anew.
   */
  run(inputs: Int32Array): Tensor | undefined {
    const count = inputs.length / 3;
    if (this.#isOff || count > MOST_TOKENS) return undefined;
    let recording = this.#recordings.get(count);
    if (!recording && this.#recordings.has(count)) {
      recording = this.#record(count);
      this.#isOff = recording === undefined;
      if (this.#isOff) return undefined;
    }
    this.#recordings.delete(count);
    this.#recordings.set(count, recording);
    this.#forgetOldest();
    if (!recording) return undefined;
    recording.inputs.write(inputs);
    recording.graph.launch();
    return recording.logits.reshape(recording.logits.shape);
  }

  /** Records a step without running it; undefined where the device does not record such steps. */
  #record(count: number): Recording | undefined {
    const inputs = keep(Tensor.empty([3, count], "i32", this.#device));
    let logits: Tensor | undefined;
    let graph: CapturedGraph | undefined;
    try {
      graph = capture(this.#device, () => {
        logits = keep(scope(() => this.#step(inputs)));
      });
      return graph && { inputs, logits: logits as Tensor, graph };
    } finally {
      if (!graph) for (const tensor of [inputs, logits]) tensor?.dispose();
    }
  }

  #forgetOldest(): void {
    if (this.#recordings.size <= MOST_RECORDINGS) return;
    const [count, recording] = this.#recordings.entries().next().value as [
      number,
      Recording | undefined,
    ];
    this.#recordings.delete(count);
    if (recording) disposeRecording(recording);
  }

  /** Frees the recordings. Before what they read is freed. */
  dispose(): void {
    for (const recording of this.#recordings.values()) if (recording) disposeRecording(recording);
    this.#recordings.clear();
  }
}

function disposeRecording({ inputs, logits, graph }: Recording): void {
  graph.dispose();
  inputs.dispose();
  logits.dispose();
}
