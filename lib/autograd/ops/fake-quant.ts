import { invoke } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";

/** Quantizer of a matrix [M, K] along its rows. */
export interface FakeQuantParams {
  readonly bits: number;
  /** Elements that share a scale; 0 = the whole row. */
  readonly group: number;
  readonly symmetric: boolean;
  /** Smallest scale. */
  readonly floor: number;
}

const pair: OpPair<FakeQuantParams> = {
  name: "fake_quant",
  forward: (inputs, p) => {
    const x = tensorOf(inputs, 0);
    const [scale, zero] = invoke("quant_grid", [x, inputs[1]?.tensor], {
      bits: p.bits,
      group: p.group,
      symmetric: p.symmetric ? 1 : 0,
      floor: p.floor,
      round_f16: 0,
    });
    if (!scale || !zero) throw new TypeError("quant_grid gives two outputs");
    // The value shares x's memory: whoever multiplies it applies the grid on load.
    return { tensor: x.view(0, x.shape), grid: { scale, zero, bits: p.bits, group: p.group } };
  },
  backward: ({ g, inputs, output, params: p }) =>
    invoke(
      "fake_quant_grad",
      [tensorOf(inputs, 0), output.grid?.scale, output.grid?.zero, g, inputs[1]?.tensor],
      { bits: p.bits, group: p.group, symmetric: p.symmetric ? 1 : 0, floor: p.floor },
    ),
};

/**
 * Fake quantization with a learned clip: one logit for all tokens, or logits [2, M, G] for the
 * upper and lower end of each weight group, or none.
 *
 * The result is lazy (see Value): linear and attention apply the grid while they load operands.
 * Gradient: straight through the rounds; see docs/method.md.
 */
export function fakeQuant(
  graph: Graph,
  x: Var,
  clip: Var | undefined,
  params: FakeQuantParams,
): Var {
  return graph.apply(pair, [x, clip], params);
}
