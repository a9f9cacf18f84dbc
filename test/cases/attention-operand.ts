// Cases of attention with the quantizer of its result, and of the gradient through both.
import { differences } from "../reference/finite-differences.ts";
import { fakeQuantGradient } from "../reference/straight-through.ts";
import { attention, drawKept, makeAttention, run, sizes, used, withKept } from "./attention.ts";
import { codesOf, drawLogit, gridOptions } from "./block-operand.ts";
import { DIFFERENCES, type Dims, dim, input, type OpCase, param } from "./case.ts";
import { TOKEN_FLOOR } from "./quantize.ts";

/** quantized: a bit each for q, k and v; clip: with a logit; bits: of the result. */
const SETS: readonly Dims[] = [
  { B: 1, T: 1, heads: 1, kv: 1, D: 1, quantized: 0, bits: 4 },
  { B: 2, T: 5, heads: 4, kv: 2, D: 6, quantized: 0, bits: 4, clip: 1 },
  { B: 1, T: 9, heads: 3, kv: 1, D: 4, quantized: 7, bits: 3, clip: 1 },
  { B: 1, T: 7, heads: 2, kv: 2, D: 32, quantized: 6, bits: 7 },
];
/** Heads as a GPU's own passes take them; too large for differences. */
const WIDE_SETS: readonly Dims[] = [
  { B: 2, T: 9, heads: 3, kv: 1, D: 64, quantized: 7, bits: 4, clip: 1 },
  { B: 1, T: 7, heads: 4, kv: 4, D: 128, quantized: 0, bits: 4, clip: 1 },
];
const REAL: readonly Dims[] = [
  { B: 1, T: 2048, heads: 8, kv: 8, D: 64, quantized: 7, bits: 4, clip: 1 },
  { B: 1, T: 2048, heads: 32, kv: 32, D: 128, quantized: 7, bits: 4, clip: 1 },
];

const rowsOf = (dims: Dims): [number, number] => [
  dim(dims, "B") * dim(dims, "T"),
  dim(dims, "heads") * dim(dims, "D"),
];

const attentionOperand: OpCase = {
  op: "attention_operand",
  sets: [...SETS, ...WIDE_SETS],
  real: REAL,
  make: (draw, dims) => {
    const { inputs, params } = makeAttention(draw, dims);
    return {
      inputs: [...inputs, drawLogit(draw, dims)],
      params: { ...params, floor: TOKEN_FLOOR, row_bits: dim(dims, "bits") },
    };
  },
  reference: (call) => {
    const { o, lse } = run(call, used(call));
    const { B, T, heads, D } = sizes(call);
    const rows = [B * T, heads * D];
    const { scale, zero, codes } = codesOf(o, call.inputs[9], rows, param(call, "row_bits"));
    return [o, lse, new Float64Array(0), scale, zero, codes];
  },
  tolerance: attention.tolerance,
  bytes: (dims, size) => attention.bytes(dims, size) + rowsOf(dims)[0] * rowsOf(dims)[1],
  flops: attention.flops,
  bound: "flops",
};

const attentionOperandGrad: OpCase = {
  op: "attention_operand_grad",
  gradient: { forward: "attention_operand", kind: "rule" },
  sets: withKept(SETS),
  real: REAL,
  make: (draw, dims) => {
    const forward = attentionOperand.make(draw, dims);
    const shape = input(forward, 0).shape;
    const { B, T, heads } = sizes(forward);
    const made = () => run(forward, used(forward));
    const grid = () => codesOf(made().o, forward.inputs[9], rowsOf(dims), dim(dims, "bits"));
    const rows = [B * T, 1];
    const { keep: _, ...params } = forward.params;
    return {
      inputs: [
        ...forward.inputs,
        draw.derive(shape, () => made().o),
        draw.derive([B, heads, T], () => made().lse),
        draw.derive(rows, () => grid().scale),
        draw.derive(rows, () => grid().zero),
        draw.normal(shape),
        drawKept(draw, dims),
      ],
      params,
    };
  },
  reference: (call) => {
    const { B, T, heads, D } = sizes(call);
    const { o } = run(call, used(call));
    const options = gridOptions(B * T, heads * D, param(call, "row_bits"));
    const g = input(call, 14).data;
    const through = fakeQuantGradient(o, call.inputs[9]?.data, g, options);
    const forward = (xs: readonly Float64Array[]) => [run(call, xs).o];
    const gradients = [0, 1, 2].map((i) => differences(forward, used(call), i, [through.gx]));
    return [...gradients, through.gclip];
  },
  tolerance: DIFFERENCES,
  bytes: (dims, size) => 2 * attention.bytes(dims, size),
  flops: (dims) => 2.5 * attention.flops(dims),
  bound: "flops",
};

export const CASES: readonly OpCase[] = [attentionOperand, attentionOperandGrad];
