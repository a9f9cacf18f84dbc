// One linear of a training step, whole: quantizers, forward product, both gradient products and the
// gradients of the quantizers, beside the bare products of the same sizes. On GPUs, with bf16
// products; row "linear".

import { FLOAT4_FORMATS } from "../lib/autograd/float4.ts";
import { synchronize } from "../lib/tensor/device.ts";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "../test/helpers/random.ts";
import { toTensor } from "../test/helpers/run-op.ts";
import { type Bench, isWanted, printRow, timeQueues } from "./harness.ts";

export const LINEAR_ROW = "linear";

const [M, O, I] = [2048, 4096, 4096];
/** Copies of every operand: more than a cache holds. */
const COPIES = 3;
const WIDTHS = [-34, 10, 10, 10];

const PLAIN = { a_bits: 0, a_group: 0, b_bits: 0, b_group: 0, accumulate: 0 };
const NVFP4 = { format: FLOAT4_FORMATS.nvfp4 };
const NVFP4_GROUP = 16;
const QUANTIZER = { group: 0, symmetric: 0, floor: 2 ** -14, rule: 0 };

interface Operands {
  /** f32 [M, I], and what is left of it in bf16. */
  readonly x: Tensor;
  readonly xShort: Tensor;
  /** [O, I] f16 as calibration keeps it, and bf16 for the bare products. */
  readonly w: Tensor;
  readonly wShort: Tensor;
  /** Gradient of the output, bf16 [M, O]. */
  readonly g: Tensor;
  readonly clip: Tensor;
  readonly tokenClip: Tensor;
  /** Of NVFP4: a logit of each group of 16, and the global scales of w and x. */
  readonly groupClip: Tensor;
  readonly wGlobal: Tensor;
  readonly xGlobal: Tensor;
}

function draw(device: string, seed: number): Operands {
  const numbers = new Draw(seed, "f32", true);
  const make = (shape: readonly number[], std = 1, mean = 0): Tensor =>
    toTensor(numbers.normal(shape, std, mean), { device, dtype: "f32" });
  const as = (x: Tensor, type: "f16" | "bf16"): Tensor =>
    invokeOne("cast", [x], { dtype: dtypeCode(type) });
  const [x, w, g] = [make([M, I]), make([O, I], 0.02), make([M, O])];
  const operands = {
    x,
    xShort: as(x, "bf16"),
    w: as(w, "f16"),
    wShort: as(w, "bf16"),
    g: as(g, "bf16"),
    clip: make([2, O, 1], 0.1, 4),
    tokenClip: make([1], 0, 4),
    groupClip: make([O, I / NVFP4_GROUP], 0.1, 4),
    wGlobal: invokeOne("fp4_global", [w]),
    xGlobal: invokeOne("fp4_global", [x]),
  };
  w.dispose();
  g.dispose();
  return operands;
}

type Step = (operands: Operands) => readonly Tensor[];

/** An operand of a product: a tensor, and the scales of its rows if it holds whole numbers. */
type Factor = readonly [Tensor, Tensor | undefined];

function product(a: Factor, b: Factor, transA: boolean, transB: boolean, bf16: boolean): Tensor {
  const params = { ...PLAIN, trans_a: Number(transA), trans_b: Number(transB), bf16: Number(bf16) };
  return invokeOne("fake_quant_gemm", [a[0], b[0], a[1], undefined, b[1]], params);
}

const bareForward: Step = ({ xShort: x, wShort: w }) => [
  product([x, undefined], [w, undefined], false, true, true),
];
const bareAll: Step = (o) => [
  ...bareForward(o),
  product([o.g, undefined], [o.wShort, undefined], false, false, true),
  product([o.g, undefined], [o.xShort, undefined], true, false, true),
];

interface Quantized {
  readonly factor: Factor;
  /** For the product that gives the gradient of W. */
  readonly values: Factor;
  readonly scale: Tensor;
  readonly zero: Tensor;
  readonly made: readonly Tensor[];
}

function quantize(
  x: Tensor,
  clip: Tensor,
  bits: number,
  type: "i8" | "bf16",
  hasValues: boolean,
): Quantized {
  const isWhole = type === "i8";
  const params = { ...QUANTIZER, bits, dtype: dtypeCode(type), values: hasValues ? 1 : 0 };
  const made = invoke("quant_operand", [x, clip], params);
  const [scale, zero, y, values] = made as [Tensor, Tensor, Tensor, Tensor];
  const factor: Factor = [y, isWhole ? scale : undefined];
  return { factor, values: hasValues ? [values, undefined] : factor, scale, zero, made };
}

/**
 * As a step does it: forward, and with `backward` both gradients down to x and the logits; x in f32, or
 * in bf16 with the output and its own gradient in it.
 */
function fused(abits: 4 | 16, backward: boolean, isShort = false): Step {
  return ({ x: wide, xShort, w, g, clip, tokenClip }) => {
    const weight = quantize(w, clip, 4, abits === 4 ? "i8" : "bf16", false);
    const x = isShort ? xShort : wide;
    const tokens = abits === 4 ? quantize(x, tokenClip, 4, "i8", backward) : undefined;
    const made = [...weight.made, ...(tokens?.made ?? [])];
    let input: Factor = tokens?.factor ?? [xShort, undefined];
    if (!tokens && !isShort) {
      const rounded = invokeOne("cast", [x], { dtype: dtypeCode("bf16") });
      made.push(rounded);
      input = [rounded, undefined];
    }
    made.push(product(input, weight.factor, false, true, isShort));
    if (!backward) return made;
    const gx = product([g, undefined], weight.factor, false, false, isShort);
    const gw = product([g, undefined], tokens?.values ?? input, true, false, true);
    const params = { ...QUANTIZER, bits: 4 };
    made.push(gx, gw);
    made.push(
      ...invoke("fake_quant_grad", [w, weight.scale, weight.zero, gw, clip], {
        ...params,
        need_gx: 0,
      }),
    );
    if (tokens) {
      made.push(
        ...invoke("fake_quant_grad", [x, tokens.scale, tokens.zero, gx, tokenClip], {
          ...params,
          need_gx: 1,
        }),
      );
    }
    return made;
  };
}

interface Floats {
  /** Whole values times scales, and the number that a product of them is times. */
  readonly factor: Factor;
  readonly scale: Tensor;
  readonly made: readonly Tensor[];
}

function quantizeFloats(x: Tensor, global: Tensor, clip?: Tensor): Floats {
  const made = invoke("fp4_operand", [x, global, clip], { ...NVFP4, dtype: dtypeCode("bf16") });
  const [scale, factor, y] = made as [Tensor, Tensor, Tensor];
  return { factor: [y, factor], scale, made };
}

/** NVFP4, down to x and a logit of each group of W; x in f32, or in bf16 with gradients in it. */
function fusedFloats(abits: 4 | 16, isShort: boolean): Step {
  return ({ x: wide, xShort, w, g, groupClip, wGlobal, xGlobal }) => {
    const weight = quantizeFloats(w, wGlobal, groupClip);
    const x = isShort ? xShort : wide;
    const tokens = abits === 4 ? quantizeFloats(x, xGlobal) : undefined;
    const made = [...weight.made, ...(tokens?.made ?? [])];
    let input = tokens?.factor ?? ([xShort, undefined] as const);
    if (!tokens && !isShort) {
      const rounded = invokeOne("cast", [x], { dtype: dtypeCode("bf16") });
      made.push(rounded);
      input = [rounded, undefined];
    }
    made.push(product(input, weight.factor, false, true, isShort));
    const gx = product([g, undefined], weight.factor, false, false, isShort);
    const gw = product([g, undefined], input, true, false, true);
    const ofWeight = [w, weight.scale, wGlobal, gw, groupClip];
    made.push(gx, gw, ...invoke("fp4_grad", ofWeight, { ...NVFP4, need_gx: 0, spends_grad: 1 }));
    if (!tokens) return made;
    return [
      ...made,
      ...invoke("fp4_grad", [x, tokens.scale, xGlobal, gx], {
        ...NVFP4,
        need_gx: 1,
        spends_grad: 1,
      }),
    ];
  };
}

/** Prints the rows; nothing on a CPU, whose operands are quantized while they are packed. */
export async function benchLinear({ device, filters, save }: Bench): Promise<void> {
  if (device === "cpu" || !isWanted(filters, LINEAR_ROW)) return;
  const copies = Array.from({ length: COPIES }, (_, i) => draw(device, i));
  const mark = copies[0]?.tokenClip as Tensor;
  const bodiesOf = (step: Step): readonly (() => void)[] =>
    copies.map((operands) => () => {
      for (const tensor of step(operands)) tensor.dispose();
    });
  // Reading a number waits for all that is under way.
  const wait = (): void => void mark.item();
  process.stdout.write(
    `\nlinear, ${M} x ${O} x ${I}, W in 16 bits, beside the bare bf16 products\n`,
  );
  printRow(["", "us", "bare us", "ratio"], WIDTHS);
  try {
    for (const [name, step, bare] of [
      ["forward W4A4", fused(4, false), bareForward],
      ["forward W4A4, bf16 x", fused(4, false, true), bareForward],
      ["forward W4A16", fused(16, false), bareForward],
      ["forward W4A16, bf16 x", fused(16, false, true), bareForward],
      ["forward, backward W4A4", fused(4, true), bareAll],
      ["forward, backward W4A4, bf16 x", fused(4, true, true), bareAll],
      ["forward, backward W4A16", fused(16, true), bareAll],
      ["forward, backward W4A16, bf16 x", fused(16, true, true), bareAll],
      ["forward, backward NVFP4", fusedFloats(4, false), bareAll],
      ["forward, backward NVFP4, bf16 x", fusedFloats(4, true), bareAll],
      ["forward, backward NVFP4A16", fusedFloats(16, false), bareAll],
      ["forward, backward NVFP4A16, bf16 x", fusedFloats(16, true), bareAll],
    ] as const) {
      const timings = timeQueues([bodiesOf(step), bodiesOf(bare)], wait);
      const [own, limit] = timings.map(({ median }) => median * 1e6) as [number, number];
      printRow([name, own.toFixed(1), limit.toFixed(1), (own / limit).toFixed(2)], WIDTHS);
      save({ bench: "linear", name, microseconds: own, bare: limit });
    }
  } finally {
    for (const operands of copies) {
      for (const tensor of Object.values(operands) as Tensor[]) tensor.dispose();
    }
    await synchronize(device);
  }
}
