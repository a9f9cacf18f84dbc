/** What the formats of 4-bit floats have in common: elements e2m1 in groups along the rows. */

import { FLOAT4_FORMATS, type Float4Name } from "../autograd/float4.ts";
import type { Graph, Var } from "../autograd/graph.ts";
import { fakeFloat4, globalScale } from "../autograd/ops/fake-float4.ts";
import { AqError } from "../errors.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { ActivationHook, TokenState } from "./activations.ts";
import type { Learned, LearnedWeight, QuantizedWeight, Quantizer } from "./quantizer.ts";
import type { QuantScheme } from "./scheme.ts";

/** What a code stands for, before its scales; a code above 7 is the negative of the one 8 below. */
export const FLOAT4_MAGNITUDES: readonly number[] = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** How a format differs from the other. */
export interface Float4Spec {
  readonly name: Float4Name;
  /** There is a global scale for each matrix and each activation. */
  readonly hasGlobal: boolean;
  /** The byte of a scale that the format holds exactly. */
  scaleByte(value: number): number;
  /** The scale of a byte; NaN where it stands for none. */
  scaleValue(byte: number): number;
}

export class Float4Quantizer implements Quantizer {
  readonly spec: Float4Spec;

  constructor(spec: Float4Spec) {
    this.spec = spec;
  }

  clipShape(grid: readonly [number, number]): number[] {
    return [...grid];
  }

  shared(fused: readonly Tensor[]): Tensor | undefined {
    return this.spec.hasGlobal ? largestScale(fused) : undefined;
  }

  fakeWeights(
    graph: Graph,
    fused: readonly Var[],
    _scheme: QuantScheme,
    shared?: Tensor,
  ): (w: Var, learned: Learned<Var>) => Var {
    const { name: format, hasGlobal } = this.spec;
    const found = (): Var => (shared ? graph.constant(shared) : globalScale(graph, fused));
    const global = hasGlobal ? found() : undefined;
    return (w, { clip, offset }) => fakeFloat4(graph, w, { format, global, clip, offset });
  }

  /** Throws: AQ_NUMERIC where a weight is not a number. */
  codes(weights: ReadonlyMap<string, LearnedWeight>): Map<string, QuantizedWeight> {
    const { name, hasGlobal } = this.spec;
    const shared = hasGlobal ? finalGlobal([...weights.values()].map(({ w }) => w)) : undefined;
    const done = new Map<string, QuantizedWeight>();
    for (const [key, { w, clip, offset }] of weights) {
      const global =
        shared === undefined
          ? undefined
          : Tensor.from(Float32Array.of(shared), [1], "f32", w.device);
      const [scale, factor, codes] = invoke("fp4_operand", [w, global, clip, offset], {
        format: FLOAT4_FORMATS[name],
        dtype: dtypeCode("u8"),
      });
      if (!scale || !codes) throw new TypeError("fp4_operand gives three outputs");
      factor?.dispose();
      if (scope(() => invokeOne("all_finite", [scale]).item()) !== 1) {
        throw new AqError("AQ_NUMERIC", `a weight of "${key}" is not a number`);
      }
      done.set(key, { codes, scale, ...(global ? { global } : {}) });
    }
    return done;
  }

  values({ codes, scale, global }: QuantizedWeight): Tensor {
    return invokeOne("fp4_values", [codes, scale, global], {
      format: FLOAT4_FORMATS[this.spec.name],
    });
  }

  /** Tokens in groups of channels, without clipping; q, k and v stay as they are. */
  tokens(_scheme: QuantScheme, { globals }: TokenState): ActivationHook {
    const { name: format, hasGlobal } = this.spec;
    return {
      apply: (graph, name, x, group) => {
        if (group !== 0) return x;
        const known = globals?.get(name);
        const global = hasGlobal ? (known ?? "own") : undefined;
        return fakeFloat4(graph, x, { format, global });
      },
    };
  }
}

/** g [1] that all of them fit, infinite where they are all zero. */
function largestScale(weights: readonly Tensor[]): Tensor | undefined {
  return scope(() => {
    let g: Tensor | undefined;
    for (const w of weights) g = invokeOne("fp4_global", [w, g]);
    return g;
  });
}

/** The same as a number, 1 where they are all zero: as the files have it. */
function finalGlobal(weights: readonly Tensor[]): number {
  return scope(() => {
    const value = largestScale(weights)?.item() ?? 1;
    return { value: Number.isFinite(value) ? value : 1 };
  }).value;
}
