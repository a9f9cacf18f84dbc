import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Var } from "../graph.ts";
import {
  isRounded,
  QuantizableVar,
  type RowCodes,
  waitsForQuantizer,
  wanted,
} from "../quantizable.ts";

const pair: OpPair<number> = {
  name: "rope",
  forward: (x, heads) => ({
    tensor: invokeOne("rope", [tensorOf(x, 0), tensorOf(x, 1), tensorOf(x, 2)], {
      heads,
      inverse: 0,
      bf16: 0,
    }),
  }),
  backward: ({ g, inputs, params: heads }) => [
    invokeOne("rope", [g, tensorOf(inputs, 1), tensorOf(inputs, 2)], {
      heads,
      inverse: 1,
      bf16: isRounded(g) ? 1 : 0,
    }),
    undefined,
    undefined,
  ],
};

/** With the quantizer of each head behind it. */
interface HeadGrids extends RowCodes {
  readonly heads: number;
}

const quantized: OpPair<HeadGrids> = {
  name: "rope_grid",
  forward: (inputs, { heads, bits, floor }) => {
    const given = [0, 1, 2].map((i) => tensorOf(inputs, i));
    const made = invoke("rope_grid", [...given, inputs[3]?.tensor], { heads, bits, floor });
    const [tensor, scale, zero] = made;
    if (!tensor || !scale || !zero) throw new TypeError("rope_grid gives three outputs");
    const group = (tensor.shape.at(-1) as number) / heads;
    return { tensor, grid: { scale, zero, bits, group } };
  },
  backward: ({ g, inputs, output, params: { heads, bits, floor }, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const [, cos, sin, clip] = inputs.map((x) => x?.tensor);
    const params = { heads, bits, floor, bf16: isRounded(g) ? 1 : 0 };
    const made = invoke("rope_grid_grad", [output.tensor, cos, sin, clip, scale, zero, g], params);
    const [gx, gclip] = wanted(made, [needs[0], needs[3]]);
    return [gx, undefined, undefined, gclip];
  },
};

/**
 * Rotary positions on x [B, T, heads*D], with tables cos and sin [T, D/2] (constants). What is in front
 * are linears. A quantizer of each head behind it may become part of it.
 */
export function rope(graph: Graph, x: Var, cos: Var, sin: Var, heads: number): Var {
  const make = (): Var => graph.apply(pair, [x, cos, sin], heads);
  if (!waitsForQuantizer(graph, x)) return make();
  const quantize = (clip: Var | undefined, codes: RowCodes): Var =>
    graph.apply(quantized, [x, cos, sin, clip], { ...codes, heads });
  const size = (x.value.tensor.shape.at(-1) as number) / heads;
  return new QuantizableVar([x], make, quantize, { group: size });
}
