import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { FLOAT4_FORMATS, Float4, type Float4Name, type Float4Source } from "../float4.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { QuantizableVar } from "../quantizable.ts";
import { ScaledVar } from "../scaled.ts";

interface Params {
  readonly format: Float4Name;
}

const pair: OpPair<Params> = {
  name: "fake_float4",
  forward: (inputs, { format }) => {
    const x = tensorOf(inputs, 0);
    const [clip, offset, rows, columns, global] = inputs.slice(1).map((value) => value?.tensor);
    const float4 = new Float4({ x, format, global, clip, offset, rows, columns });
    // The value shares x's memory.
    return { tensor: x.view(0, x.shape), float4 };
  },
  backward: ({ g, isSpent, inputs, output, params, needs }) => {
    const { source, made } = output.float4 as Float4;
    const { x, global, clip, offset, rows, columns } = source as Float4Source;
    const gradients = invoke("fp4_grad", [x, made.scale, global, g, clip, offset, rows, columns], {
      format: FLOAT4_FORMATS[params.format],
      need_gx: needs[0] ? 1 : 0,
      spends_grad: isSpent ? 1 : 0,
    });
    // The global scale counts as a constant.
    return inputs.map((_, i) => gradients[i]);
  },
};

/** What belongs to a matrix besides its numbers. */
export interface FakeFloat4 {
  readonly format: Float4Name;
  /** g [1] of NVFP4 (`globalScale`), without a gradient, or that of x by itself; absent: 1. */
  readonly global?: Var | "own" | undefined;
  /** One logit for all, or one for each group. */
  readonly clip?: Var | undefined;
  /** Learned rounding: offsets of x's shape, in steps of the element that x is nearest to. */
  readonly offset?: Var | undefined;
}

/**
 * Fake quantization of a matrix [M, K] to 4-bit floats along its rows; K is a multiple of the group (16
 * or 32). The result is lazy (see Value). Gradient: straight through the rounding of numbers and scales;
 * see docs/method.md.
 */
export function fakeFloat4(
  graph: Graph,
  x: Var,
  { format, global, clip, offset }: FakeFloat4,
): Var {
  const isOwn = global === "own";
  // What is there already is quantized as it is.
  if (x instanceof QuantizableVar && !x.isMade && !clip && !offset && x.quantizeFloats) {
    return x.quantizeFloats(isOwn ? undefined : global, { format, isOwn });
  }
  const isScaled = x instanceof ScaledVar;
  const factors = isScaled ? [x.rows, x.columns] : [undefined, undefined];
  const g = isOwn ? globalScale(graph, [x]) : global;
  const inputs = [isScaled ? x.base : x, clip, offset, ...factors, g];
  return graph.apply(pair, inputs, { format });
}

/**
 * The global scale g [1] that matrices share, as a constant of the graph: what brings their largest
 * magnitude to the largest number of the format.
 */
export function globalScale(graph: Graph, matrices: readonly Var[]): Var {
  let g: Var | undefined;
  for (const x of matrices) {
    const isScaled = x instanceof ScaledVar;
    const { tensor } = (isScaled ? x.base : x).value;
    const factors = isScaled ? [x.rows?.value.tensor, x.columns?.value.tensor] : [];
    const next = invokeOne("fp4_global", [tensor, g?.value.tensor, ...factors]);
    g = graph.constant(next);
  }
  if (!g) throw new TypeError("a global scale needs a matrix");
  return g;
}
