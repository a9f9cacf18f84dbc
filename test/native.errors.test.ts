// Misuse of the engine: each mistake is one clear sentence with a code, and changes nothing.
import { describe, expect, it } from "vitest";
import { AqError, type AqErrorCode } from "../lib/errors.ts";
import { setThreads } from "../lib/tensor/device.ts";
import { invoke } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";

function errorOf(body: () => unknown): AqError {
  const before = liveTensors();
  try {
    scope(body);
  } catch (error) {
    if (!(error instanceof AqError)) throw error;
    expect(liveTensors()).toBe(before);
    return error;
  }
  throw new Error("nothing was thrown");
}

function f32(shape: readonly number[]): Tensor {
  return Tensor.from(new Float32Array(shape.reduce((n, d) => n * d, 1)).fill(1), shape);
}

function i32(ids: readonly number[]): Tensor {
  return Tensor.from(Int32Array.from(ids));
}

const mistakes: readonly {
  readonly title: string;
  readonly code: AqErrorCode;
  /** What the sentence must name. */
  readonly names: readonly string[];
  readonly body: () => unknown;
}[] = [
  {
    title: "two shapes that must be the same",
    code: "AQ_SHAPE",
    names: ["add", "[2, 3]", "[3, 2]"],
    body: () => invoke("add", [f32([2, 3]), f32([3, 2])], { alpha: 1 }),
  },
  {
    title: "inner sizes of a product that differ",
    code: "AQ_SHAPE",
    names: ["matmul", "[1, 2, 3]", "[1, 4, 5]"],
    body: () =>
      invoke("matmul", [f32([1, 2, 3]), f32([1, 4, 5])], { trans_a: 0, trans_b: 0, alpha: 1 }),
  },
  {
    title: "a weight whose inner size does not fit the tokens",
    code: "AQ_SHAPE",
    names: ["fake_quant_gemm", "[2, 3]", "[4, 5]"],
    body: () =>
      invoke("fake_quant_gemm", [f32([2, 3]), f32([4, 5]), ...new Array(6).fill(undefined)], {
        trans_a: 0,
        trans_b: 1,
        a_bits: 0,
        a_group: 0,
        b_bits: 0,
        b_group: 0,
        accumulate: 0,
        bf16: 0,
      }),
  },
  {
    title: "a gain of another size than the channels",
    code: "AQ_SHAPE",
    names: ["rms_norm", "[5]"],
    body: () => invoke("rms_norm", [f32([2, 4]), f32([5]), undefined], { eps: 1e-5 }),
  },
  {
    title: "a given output that does not fit",
    code: "AQ_SHAPE",
    names: ["add", "[2, 2]", "[3, 3]"],
    body: () => invoke("add", [f32([2, 2]), f32([2, 2])], { alpha: 1 }, [f32([3, 3])]),
  },
  {
    title: "float types that differ",
    code: "AQ_DTYPE",
    names: ["add", "f32", "f64"],
    body: () => invoke("add", [f32([2]), Tensor.from(new Float64Array(2))], { alpha: 1 }),
  },
  {
    title: "whole numbers where floats are needed",
    code: "AQ_DTYPE",
    names: ["exp", "i32"],
    body: () => invoke("exp", [i32([1, 2])], { scale: 1 }),
  },
  {
    title: "ids that are floats",
    code: "AQ_DTYPE",
    names: ["cross_entropy", "i32", "f32"],
    body: () => invoke("cross_entropy", [f32([2, 4]), f32([2])]),
  },
  {
    title: "an op that does not exist",
    code: "AQ_ARG",
    names: ["fake_qaunt"],
    body: () => invoke("fake_qaunt", []),
  },
  {
    title: "a parameter that the op does not have",
    code: "AQ_ARG",
    names: ["fill", "valeu"],
    body: () => invoke("fill", [f32([2])], { value: 1, valeu: 2 }),
  },
  {
    title: "a missing parameter",
    code: "AQ_ARG",
    names: ["fill", "value"],
    body: () => invoke("fill", [f32([2])]),
  },
  {
    title: "a parameter outside its range",
    code: "AQ_ARG",
    names: ["quant_grid", "bits", "9"],
    body: () =>
      invoke("quant_grid", [f32([2, 4]), undefined], {
        bits: 9,
        group: 0,
        symmetric: 0,
        round_f16: 0,
        rule: 0,
        floor: 1e-6,
      }),
  },
  {
    title: "a fraction where a whole number is needed",
    code: "AQ_ARG",
    names: ["gradual_mask", "band", "1.5"],
    body: () => invoke("gradual_mask", [f32([1, 3, 3])], { band: 1.5, sf: 0.1 }),
  },
  {
    title: "a missing input",
    code: "AQ_ARG",
    names: ["add", "b"],
    body: () => invoke("add", [f32([2]), undefined], { alpha: 1 }),
  },
  {
    title: "too few inputs",
    code: "AQ_ARG",
    names: ["add", "1", "2"],
    body: () => invoke("add", [f32([2])], { alpha: 1 }),
  },
  {
    title: "a scale without its zero",
    code: "AQ_SHAPE",
    names: ["fake_quant_gemm", "scale", "zero"],
    body: () =>
      invoke(
        "fake_quant_gemm",
        [f32([2, 3]), f32([4, 3]), f32([2, 1]), ...new Array(5).fill(undefined)],
        {
          trans_a: 0,
          trans_b: 1,
          a_bits: 4,
          a_group: 0,
          b_bits: 0,
          b_group: 0,
          accumulate: 0,
          bf16: 0,
        },
      ),
  },
  {
    title: "rounding offsets of an operand that is not quantized",
    code: "AQ_ARG",
    names: ["fake_quant_gemm", "b_v", "grid"],
    body: () =>
      invoke(
        "fake_quant_gemm",
        [f32([2, 3]), f32([4, 3]), ...new Array(5).fill(undefined), f32([4, 3])],
        {
          trans_a: 0,
          trans_b: 1,
          a_bits: 0,
          a_group: 0,
          b_bits: 0,
          b_group: 0,
          accumulate: 0,
          bf16: 0,
        },
      ),
  },
  {
    title: "rounding offsets of another size than the weight",
    code: "AQ_SHAPE",
    names: ["quantize", "v", "[2, 2]", "6"],
    body: () =>
      invoke("quantize", [f32([2, 3]), f32([2, 1]), f32([2, 1]), f32([2, 2])], {
        bits: 4,
        group: 0,
      }),
  },
  {
    title: "second moments of another layer",
    code: "AQ_SHAPE",
    names: ["gptq", "[3, 3]", "[2, 3]", "[4, 4]"],
    body: () =>
      invoke("gptq", [f32([2, 3]), f32([4, 4]), f32([2, 1]), f32([2, 1])], {
        bits: 4,
        group: 0,
        damping: 0.01,
        block: 128,
      }),
  },
  {
    title: "an id outside the vocabulary",
    code: "AQ_ARG",
    names: ["cross_entropy", "7"],
    body: () => invoke("cross_entropy", [f32([2, 4]), i32([1, 7])]),
  },
  {
    title: "a negative id of a table",
    code: "AQ_ARG",
    names: ["gather_rows", "-1"],
    body: () => invoke("gather_rows", [f32([5, 2]), i32([0, -1])], { dtype: 1 }),
  },
  {
    title: "a singular matrix, by its number",
    code: "AQ_NUMERIC",
    names: ["lu_inverse", "1"],
    body: () => {
      const identityAndOnes = Float32Array.of(1, 0, 0, 1, 1, 1, 1, 1);
      const a = Tensor.from(identityAndOnes, [2, 2, 2]);
      return invoke("lu_inverse", [a, undefined], { pivot: 1 });
    },
  },
  {
    title: "a tensor used after its end",
    code: "AQ_DISPOSED",
    names: ["a ", "dispose"],
    body: () => {
      const x = f32([2]);
      x.dispose();
      return invoke("add", [x, f32([2])], { alpha: 1 });
    },
  },
  {
    title: "reading after its end",
    code: "AQ_DISPOSED",
    names: ["dispose"],
    body: () => {
      const x = f32([2]);
      x.dispose();
      return x.read();
    },
  },
  {
    title: "a device that is not there",
    code: "AQ_DEVICE",
    names: ["tpu:7", "cpu"],
    body: () => Tensor.empty([2], "f32", "tpu:7"),
  },
  {
    title: "more memory than there is",
    code: "AQ_OOM",
    names: ["out of memory", "bytes"],
    body: () => Tensor.empty([2 ** 22, 2 ** 24], "f32"),
  },
  {
    title: "a shape whose size overflows",
    code: "AQ_SHAPE",
    names: ["4294967296"],
    body: () => Tensor.empty([2 ** 32, 2 ** 32], "f32"),
  },
  {
    title: "more dimensions than there can be",
    code: "AQ_SHAPE",
    names: ["[1, 1, 1, 1, 1, 1, 1]"],
    body: () => Tensor.empty([1, 1, 1, 1, 1, 1, 1], "f32"),
  },
  {
    title: "a size that is negative",
    code: "AQ_ARG",
    names: ["shape"],
    body: () => Tensor.empty([2, -3], "f32"),
  },
  {
    title: "data that does not fill its shape",
    code: "AQ_SHAPE",
    names: ["[2, 3]", "24", "20"],
    body: () => Tensor.from(new Float32Array(5), [2, 3]),
  },
  {
    title: "a write past the end",
    code: "AQ_ARG",
    names: ["16", "8"],
    body: () => f32([4]).write(new Float32Array(4), 8),
  },
  {
    title: "a view past the end",
    code: "AQ_SHAPE",
    names: ["[3]", "[4]"],
    body: () => f32([4]).view(2, [3]),
  },
  {
    title: "no threads at all",
    code: "AQ_ARG",
    names: ["1024", "0"],
    body: () => setThreads(0),
  },
];

describe("the engine refuses", () => {
  it.each(mistakes)("$title", ({ code, names, body }) => {
    const error = errorOf(body);
    expect(error.message).toMatch(/\S/);
    for (const name of names) expect(error.message).toContain(name);
    expect(error.code).toBe(code);
  });

  it("and works on afterwards", () => {
    const sum = scope(() =>
      Array.from(invoke("add", [f32([2]), f32([2])], { alpha: 1 })[0]?.read() ?? []),
    );
    expect(sum).toEqual([2, 2]);
  });
});

describe("a failed call leaves its tensors as they were", () => {
  it("when an output does not fit", () => {
    scope(() => {
      const out = f32([3]);
      expect(() => invoke("add", [f32([2]), f32([2])], { alpha: 1 }, [out])).toThrow(AqError);
      expect(Array.from(out.read())).toEqual([1, 1, 1]);
    });
  });
});
