import { dtypeCode } from "../../tensor/dtype.ts";
import { invoke } from "../../tensor/invoke.ts";
import { precisionOf } from "../../tensor/precision.ts";
import { type Graph, type Grid, type OpPair, tensorOf, type Var } from "../graph.ts";
import { QuantizableVar } from "../quantizable.ts";
import { ScaledVar } from "../scaled.ts";

/** Quantizer of a matrix [M, K] along its rows. */
export interface FakeQuantParams {
  readonly bits: number;
  /** Elements that share a scale; 0 = the whole row. */
  readonly group: number;
  readonly symmetric: boolean;
  /** Smallest scale. */
  readonly floor: number;
  /** The published code's grids and gradients instead of ours. */
  readonly published?: boolean | undefined;
  /**
   * What the matrix is for, where that is products: a GPU whose products are in 16 bits then makes the
   * operand of all of them at once while a graph records, as whole numbers (of at most 7 bits, whole
   * rows) or as values. Absent: whoever uses it applies the grid on load.
   */
  readonly operand?: "codes" | "values" | undefined;
  /**
   * Whether values are kept beside whole numbers, for the product that gives the weight's gradient: k runs
   * across the rows of this matrix there, and whole numbers are no help.
   */
  readonly keepsValues?: boolean | undefined;
}

const pair: OpPair<FakeQuantParams> = {
  name: "fake_quant",
  forward: (inputs, p) => {
    const x = tensorOf(inputs, 0);
    const [rows, columns] = [inputs[3]?.tensor, inputs[4]?.tensor];
    const offset = inputs[2]?.tensor;
    // The value shares x's memory.
    const tensor = x.view(0, x.shape);
    const rest = { offset, rows, columns, bits: p.bits, group: p.group };
    if (p.operand) {
      const precision = precisionOf(x.device);
      const isWhole = p.operand === "codes";
      const hasValues = isWhole && precision === "bf16" && p.keepsValues === true;
      const [scale, zero, quantized, values] = invoke(
        "quant_operand",
        [x, inputs[1]?.tensor, offset, rows, columns],
        {
          bits: p.bits,
          group: p.group,
          symmetric: p.symmetric ? 1 : 0,
          floor: p.floor,
          rule: p.published ? 1 : 0,
          dtype: dtypeCode(isWhole ? "i8" : precision),
          values: hasValues ? 1 : 0,
        },
      );
      if (!scale || !zero) throw new TypeError("quant_operand gives four outputs");
      if (!hasValues) values?.dispose();
      const grid = { scale, zero, quantized, ...rest };
      return { tensor, grid, rounded: hasValues ? values : undefined };
    }
    const [scale, zero] = invoke("quant_grid", [x, inputs[1]?.tensor, rows, columns], {
      bits: p.bits,
      group: p.group,
      symmetric: p.symmetric ? 1 : 0,
      floor: p.floor,
      round_f16: 0,
      rule: p.published ? 1 : 0,
    });
    if (!scale || !zero) throw new TypeError("quant_grid gives two outputs");
    return { tensor, grid: { scale, zero, ...rest } };
  },
  backward: ({ g, inputs, output, params: p, needs }) => {
    const { scale, zero } = output.grid as Grid;
    const given = [tensorOf(inputs, 0), scale, zero, g, ...inputs.slice(1).map((x) => x?.tensor)];
    return invoke("fake_quant_grad", given, {
      bits: p.bits,
      group: p.group,
      symmetric: p.symmetric ? 1 : 0,
      floor: p.floor,
      need_gx: needs[0] ? 1 : 0,
      rule: p.published ? 1 : 0,
    });
  },
};

/** Whether the op in front takes a quantizer in: to whole numbers of whole rows, or of heads. */
function isTakenIn(
  x: QuantizableVar,
  clip: Var | undefined,
  { group, symmetric, published, operand }: FakeQuantParams,
): boolean {
  if (symmetric || published || (operand === "codes") !== (x.group === 0)) return false;
  return group === x.group && (!clip || clip.value.tensor.size === 1);
}

/**
 * Fake quantization with a learned clip: one logit for all tokens, or logits [2, M, G] for the
 * upper and lower end of each weight group, or none; and with learned rounding: offsets of x's
 * shape, added to x / scale before it is rounded, or none.
 *
 * The result is lazy (see Value): linear applies the grid while it loads operands, and so does
 * attention, which takes no offsets. Gradient: straight through the rounds; see docs/method.md. It
 * is cheaper where x itself wants none.
 */
export function fakeQuant(
  graph: Graph,
  x: Var,
  clip: Var | undefined,
  given: FakeQuantParams,
  offset?: Var,
): Var {
  const { operand, ...params } = given;
  if (x instanceof QuantizableVar && !offset && isTakenIn(x, clip, given)) {
    return x.quantize(clip, { bits: params.bits, floor: params.floor });
  }
  const base = x instanceof ScaledVar ? x.base : x;
  const factors = x instanceof ScaledVar ? [x.rows, x.columns] : [undefined, undefined];
  const makes = operand && graph.records && precisionOf(base.value.tensor.device) !== "f32";
  return graph.apply(
    pair,
    [base, clip, offset, ...factors],
    makes ? { ...params, operand } : params,
  );
}
