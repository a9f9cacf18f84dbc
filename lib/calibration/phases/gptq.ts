/**
 * Final rounding by GPTQ (arXiv 2210.17323): linear after linear in the order in which the block runs
 * them, each on the inputs that the linears before it leave once they are quantized.
 */

import { setImmediate } from "node:timers/promises";
import type { Eager, Graph, Var } from "../../autograd/graph.ts";
import { materialize } from "../../autograd/graph.ts";
import { AqError } from "../../errors.ts";
import type { LoadedWeights } from "../../models/load.ts";
import type { ActivationHook } from "../../quant/activations.ts";
import { gptqWeight } from "../../quant/integers.ts";
import type { QuantizedWeight } from "../../quant/quantizer.ts";
import { dequantizeWeight, disposeQuantized } from "../../quant/weights.ts";
import { dtypeCode } from "../../tensor/dtype.ts";
import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { scope } from "../../tensor/scope.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Parameter } from "../parameters.ts";
import { forward, tokenConstants } from "../passes.ts";
import { activationHook, type BlockProblem, tokenClipName, weightClipName } from "../problem.ts";

/** Codes by linear; the caller owns them. Throws: AQ_STOPPED, AQ_NUMERIC. */
export async function gptqPhase(
  problem: BlockProblem,
  folded: LoadedWeights,
  clips: readonly Parameter[],
  signal: AbortSignal | undefined,
): Promise<Record<string, QuantizedWeight>> {
  const { model, scheme, kept } = problem;
  const clipOf = new Map(clips.map((p) => [p.name, p.value]));
  const tokenClips: Record<string, Tensor> = {};
  for (const name of model.activations) {
    const clip = clipOf.get(tokenClipName(name));
    if (clip) tokenClips[name] = clip;
  }
  const quantized: Record<string, QuantizedWeight> = {};
  const current: Record<string, Tensor> = { ...folded };
  const made: Tensor[] = [];
  try {
    const quantizing = model.linears.filter(({ key }) => !kept.has(key));
    for (const activation of new Set(quantizing.map((linear) => linear.activation))) {
      const linears = quantizing.filter((linear) => linear.activation === activation);
      const size = linears[0]?.in ?? 0;
      const moments = await secondMoments(problem, current, tokenClips, activation, size, signal);
      try {
        for (const { key } of linears) {
          const clip = clipOf.get(weightClipName(key));
          const result = gptqWeight(folded[key] as Tensor, moments, clip, scheme);
          quantized[key] = result;
          const weight = dequantizeWeight(result, scheme.groupSize);
          made.push(weight);
          current[key] = weight;
        }
      } finally {
        moments.dispose();
      }
    }
    return quantized;
  } catch (error) {
    disposeQuantized(quantized);
    throw error;
  } finally {
    for (const tensor of made) tensor.dispose();
  }
}

/** XtX / N, summed in float64, X the quantized activation over all tokens of the quantized stream. */
async function secondMoments(
  problem: BlockProblem,
  weights: LoadedWeights,
  tokenClips: LoadedWeights,
  activation: string,
  size: number,
  signal: AbortSignal | undefined,
): Promise<Tensor> {
  const { device } = problem.context;
  const sum = Tensor.empty([size, size], "f64", device);
  try {
    invoke("fill", [sum], { value: 0 });
    let tokens = 0;
    for (let n = 0; n < problem.inputs.windows; n++) {
      await setImmediate();
      if (signal?.aborted) throw new AqError("AQ_STOPPED", `stopped in block ${problem.index}`);
      scope(() => {
        const watch = (graph: Eager): ActivationHook => {
          const inner = activationHook(
            problem,
            tokenConstants(graph, { clips: tokenClips, globals: {} }),
          );
          return new Watch(inner, activation, (x) => {
            tokens += x.size / size;
            addMoments(sum, x);
          });
        };
        forward(problem.model, problem.context, weights, problem.inputs.window(n), watch);
      });
    }
    return scope(() => {
      const mean = Tensor.empty([size, size], "f64", device);
      invoke("fill", [mean], { value: 0 });
      invoke("axpy", [mean, sum], { alpha: 1 / tokens });
      return invokeOne("cast", [mean], { dtype: dtypeCode("f32") });
    });
  } finally {
    sum.dispose();
  }
}

/** sum += XtX. */
function addMoments(sum: Tensor, x: Tensor): void {
  const double = invokeOne("cast", [x], { dtype: dtypeCode("f64") });
  const none = undefined;
  const params = { trans_a: 1, trans_b: 0, a_bits: 0, a_group: 0, b_bits: 0, b_group: 0 };
  invokeOne(
    "fake_quant_gemm",
    [double, double, none, none, none, none, none, none],
    { ...params, accumulate: 1, bf16: 0 },
    sum,
  );
}

/** Passes everything on, and shows one activation as the linears will see it. */
class Watch implements ActivationHook {
  readonly #inner: ActivationHook;
  readonly #name: string;
  readonly #see: (x: Tensor) => void;

  constructor(inner: ActivationHook, name: string, see: (x: Tensor) => void) {
    this.#inner = inner;
    this.#name = name;
    this.#see = see;
  }

  apply(graph: Graph, name: string, x: Var, group: number): Var {
    const result = this.#inner.apply(graph, name, x, group);
    if (name === this.#name) this.#see(materialize(result.value));
    return result;
  }
}
