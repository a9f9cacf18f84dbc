// What the tape itself does, whatever the operations: gradients of values that are used several
// times, what is recorded and what is not, what is freed and when, and what it refuses.
import { beforeEach, describe, expect, it } from "vitest";
import {
  Eager,
  type Graph,
  materialize,
  type OpPair,
  type Value,
  type Var,
} from "../lib/autograd/graph.ts";
import { add } from "../lib/autograd/ops/add.ts";
import { fakeQuant } from "../lib/autograd/ops/fake-quant.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { mse } from "../lib/autograd/ops/mse.ts";
import { mul } from "../lib/autograd/ops/mul.ts";
import { rmsNorm } from "../lib/autograd/ops/rms-norm.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { kernelCalls } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { Draw } from "./helpers/random.ts";
import type { Value as Numbers } from "./helpers/value.ts";
import { matmul } from "./reference/linalg.ts";

const draw = new Draw(11, "f64");

/** A row [1, n] of float64. */
function row(...data: number[]): Tensor {
  return Tensor.from(Float64Array.from(data), [1, data.length]);
}

function tensor({ data, shape }: Numbers): Tensor {
  return Tensor.from(Float64Array.from(data), shape);
}

/** Sum of the elements of a row with given weights: its gradient is the weights. */
function weighted(graph: Graph, x: Var, ...weights: number[]): Var {
  return linear(graph, x, graph.constant(row(...weights)));
}

/** Runs a body on a fresh tape; everything it made is gone afterwards. */
function onTape<T>(body: (tape: Tape) => T): T {
  return scope(() => ({ result: body(new Tape()) })).result;
}

function gradientOf(tape: Tape, v: Var): number[] {
  return Array.from(tape.gradient(v)?.read() ?? []);
}

let live = 0;
beforeEach(() => {
  live = liveTensors();
});

describe("a value that is used several times", () => {
  it("gets the sum of what every use gives", () => {
    onTape((tape) => {
      const x = tape.parameter(row(1, 2, 3));
      const sum = add(tape, add(tape, x, x), x);
      tape.backward(weighted(tape, sum, 10, 20, 30));
      expect(gradientOf(tape, x)).toEqual([30, 60, 90]);
    });
  });

  it("may meet itself in a product", () => {
    onTape((tape) => {
      const x = tape.parameter(row(1, 2, 3));
      const cube = mul(tape, mul(tape, x, x), x);
      tape.backward(weighted(tape, cube, 1, 1, 1));
      expect(gradientOf(tape, x)).toEqual([3, 12, 27]);
    });
  });

  it("may be passed on unchanged and used again, in any order", () => {
    const orders = [0, 1, 2, 3].map((order) =>
      onTape((tape) => {
        const x = tape.parameter(row(1, 2));
        const y = tape.parameter(row(3, 5));
        const square = mul(tape, x, x);
        const [a, b] = order % 2 ? [x, y] : [y, x];
        const sum = add(tape, a, b);
        const both = order < 2 ? add(tape, sum, square) : add(tape, square, sum);
        tape.backward(weighted(tape, add(tape, both, both), 1, 10));
        return [gradientOf(tape, x), gradientOf(tape, y)];
      }),
    );
    for (const gradients of orders) {
      expect(gradients).toEqual([
        [6, 100],
        [2, 20],
      ]);
    }
  });

  it("adds up over linears that share it and a residual around them", () => {
    const [M, C] = [3, 4];
    const [x, w1, w2, t] = [
      [M, C],
      [C, C],
      [C, C],
      [M, C],
    ].map((shape) => draw.normal(shape)) as [Numbers, Numbers, Numbers, Numbers];
    const [gx, y] = onTape((tape) => {
      const input = tape.parameter(tensor(x));
      const weights = [w1, w2].map((w) => tape.constant(tensor(w)));
      const [a, b] = weights.map((w) => linear(tape, input, w)) as [Var, Var];
      const out = add(tape, input, add(tape, a, b));
      const result = Array.from(out.value.tensor.read());
      tape.backward(mse(tape, out, tape.constant(tensor(t))));
      return [gradientOf(tape, input), result] as const;
    });
    const g = Float64Array.from(y, (value, i) => (2 * (value - (t.data[i] as number))) / (M * C));
    const through = [w1, w2].map((w) =>
      matmul(g, w.data, { B: 1, M, N: C, K: C }, { alpha: 1, transA: false, transB: false }),
    );
    for (const [i, value] of gx.entries()) {
      const expected = through.reduce((sum, part) => sum + (part[i] as number), g[i] as number);
      expect(value).toBeCloseTo(expected, 13);
    }
  });

  it("adds up over its uses as a weight", () => {
    onTape((tape) => {
      const w = tape.parameter(row(1, 1));
      const a = linear(tape, tape.constant(row(2, 3)), w);
      const b = linear(tape, tape.constant(row(5, 7)), w);
      tape.backward(add(tape, a, b));
      expect(gradientOf(tape, w)).toEqual([7, 10]);
    });
  });
});

/** Doubles its input; counts its calls and tells what it was asked for. */
function probe(seen: string[]): OpPair<string> {
  return {
    name: "probe",
    forward: (x) => {
      const doubled = x[0] as Value;
      return { tensor: materialize(doubled).reshape(doubled.tensor.shape), saved: [row(0)] };
    },
    backward: ({ g, params: label }) => {
      seen.push(label);
      return [g];
    },
  };
}

describe("what needs no gradient", () => {
  it("is not recorded: backward never reaches operations on constants", () => {
    const seen: string[] = [];
    onTape((tape) => {
      const x = tape.parameter(row(1, 2));
      const c = tape.constant(row(3, 4));
      const constants = tape.apply(probe(seen), [tape.apply(probe(seen), [c], "inner")], "outer");
      expect(constants.needsGrad).toBe(false);
      const y = tape.apply(probe(seen), [mul(tape, x, constants)], "path");
      expect(y.needsGrad).toBe(true);
      tape.backward(weighted(tape, y, 1, 1));
      expect(seen).toEqual(["path"]);
      expect(gradientOf(tape, x)).toEqual([3, 4]);
      expect(tape.gradient(c)).toBeUndefined();
    });
  });

  it("drops what operations on constants would save", () => {
    onTape((tape) => {
      const c = tape.constant(row(3, 4));
      const before = liveTensors();
      tape.apply(probe([]), [c], "constant");
      expect(liveTensors()).toBe(before + 1);
    });
  });

  it("is not computed: a constant operand of a linear costs no product", () => {
    const products = (wanted: "x" | "w" | "both"): number =>
      onTape((tape) => {
        const leaf = (t: Tensor, name: string) =>
          wanted === "both" || wanted === name ? tape.parameter(t) : tape.constant(t);
        const x = leaf(tensor(draw.normal([3, 4])), "x");
        const w = leaf(tensor(draw.normal([2, 4])), "w");
        const loss = mse(tape, linear(tape, x, w), tape.constant(tensor(draw.normal([3, 2]))));
        const before = kernelCalls("cpu")["fake_quant_gemm"] as number;
        tape.backward(loss);
        return (kernelCalls("cpu")["fake_quant_gemm"] as number) - before;
      });
    expect([products("x"), products("w"), products("both")]).toEqual([1, 1, 2]);
  });

  it("is a parameter that the loss does not depend on", () => {
    const seen: string[] = [];
    onTape((tape) => {
      const [x, unused] = [tape.parameter(row(1, 2)), tape.parameter(row(3, 4))];
      tape.apply(probe(seen), [unused], "dead branch");
      tape.backward(weighted(tape, x, 1, 1));
      expect(seen).toEqual([]);
      expect(tape.gradient(unused)).toBeUndefined();
    });
  });
});

describe("memory", () => {
  it("holds leaves and gradients after backward, and nothing after the scope", () => {
    onTape((tape) => {
      const [x, w, gain] = [draw.normal([3, 4]), draw.normal([4, 4]), draw.normal([4])].map((v) =>
        tape.parameter(tensor(v)),
      ) as [Var, Var, Var];
      const target = tape.constant(tensor(draw.normal([3, 4])));
      expect(liveTensors()).toBe(live + 4);
      const normed = rmsNorm(tape, x, gain, 1e-6);
      const quantized = fakeQuant(tape, normed, undefined, {
        bits: 4,
        group: 0,
        symmetric: false,
        floor: 1e-6,
      });
      const y = add(tape, x, linear(tape, quantized, w));
      const loss = mse(tape, add(tape, y, y), target);
      expect(liveTensors()).toBeGreaterThan(live + 8);
      tape.backward(loss);
      expect(liveTensors()).toBe(live + 4 + 3);
      expect(loss.value.tensor.disposed).toBe(true);
    });
    expect(liveTensors()).toBe(live);
  });

  it("frees the values of a branch that the loss does not use", () => {
    onTape((tape) => {
      const x = tape.parameter(row(1, 2));
      const w = tape.constant(row(1, 1));
      mul(tape, x, x);
      tape.backward(linear(tape, x, w));
      expect(liveTensors()).toBe(live + 3);
    });
    expect(liveTensors()).toBe(live);
  });

  it("is given back when an operation fails in the middle", () => {
    expectAqError(
      () =>
        onTape((tape) => {
          const x = tape.parameter(row(1, 2));
          mul(tape, add(tape, x, x), tape.constant(row(1, 2, 3)));
        }),
      "AQ_SHAPE",
      "mul",
    );
    expect(liveTensors()).toBe(live);
  });

  it("of an eager graph keeps results and nothing that was saved", () => {
    scope(() => {
      const graph = new Eager();
      const x = graph.constant(tensor(draw.normal([3, 4])));
      const y = rmsNorm(graph, x, graph.constant(tensor(draw.normal([4]))), 1e-6);
      expect(y.needsGrad).toBe(false);
      expect(liveTensors()).toBe(live + 3);
    });
    expect(liveTensors()).toBe(live);
  });
});

describe("the tape refuses", () => {
  it("values of another graph", () => {
    onTape((tape) => {
      const [mine, other] = [tape.parameter(row(1)), new Tape().parameter(row(1))];
      const eager = new Eager().constant(row(1));
      expectAqError(() => add(tape, mine, other), "AQ_INTERNAL", "add", "another graph");
      expectAqError(() => add(tape, eager, mine), "AQ_INTERNAL", "add", "another graph");
      expectAqError(() => tape.backward(other), "AQ_INTERNAL", "backward", "another graph");
      expectAqError(() => tape.gradient(other), "AQ_INTERNAL", "gradient", "another graph");
    });
  });

  it("a loss of more than one element", () => {
    onTape((tape) => {
      const x = tape.parameter(row(1, 2, 3));
      const sum = add(tape, x, x);
      expectAqError(() => tape.backward(sum), "AQ_SHAPE", "one element", "[1, 3]");
    });
  });

  it("a backward pass that gives too few gradients, none, or one of another size", () => {
    const wrong = (name: string, gradients: (g: Tensor) => readonly (Tensor | undefined)[]) =>
      onTape((tape) => {
        const pair: OpPair<null> = {
          name,
          forward: () => ({ tensor: row(4) }),
          backward: ({ g }) => gradients(g),
        };
        const x = tape.parameter(row(1));
        tape.backward(tape.apply(pair, [x, x], null));
      });
    const parts = ["AQ_INTERNAL", "broken"] as const;
    expectAqError(() => wrong("broken", (g) => [g]), ...parts, "1 gradients for 2 inputs");
    expectAqError(() => wrong("broken", (g) => [g, undefined]), ...parts, "input 1");
    expectAqError(() => wrong("broken", (g) => [row(1, 2), g]), ...parts, "input 0", "[1, 2]");
  });
});

describe("a lazily quantized value", () => {
  const params = { bits: 3, group: 3, symmetric: false, floor: 1e-6 };
  const [M, K, N] = [5, 7, 4];
  const x = draw.normal([M, K]);
  const clip = draw.normal([2, M, 3], 0.5, 2);
  const [w1, w2, t] = [draw.normal([N, K]), draw.normal([N, K]), draw.normal([M, N])];
  /** Applies the grid now; the gradient passes on to the quantizer. */
  const now: OpPair<null> = {
    name: "now",
    forward: ([value]) => ({ tensor: materialize(value as Value) }),
    backward: ({ g }) => [g],
  };

  function run(prepare: (tape: Tape, quantized: Var) => Var) {
    return onTape((tape) => {
      const vars = [x, clip, w1, w2].map((v) => tape.parameter(tensor(v))) as [Var, Var, Var, Var];
      const quantized = prepare(tape, fakeQuant(tape, vars[0], vars[1], params));
      const sum = add(tape, linear(tape, quantized, vars[2]), linear(tape, quantized, vars[3]));
      const y = Array.from(sum.value.tensor.read());
      tape.backward(mse(tape, sum, tape.constant(tensor(t))));
      return { y, gradients: vars.map((v) => gradientOf(tape, v)) };
    });
  }

  it("that two linears share is the one that is computed first, bit for bit", () => {
    const before = kernelCalls("cpu")["fake_quant"] as number;
    const lazy = run((_, quantized) => quantized);
    expect(kernelCalls("cpu")["fake_quant"]).toBe(before);
    const eager = run((tape, quantized) => tape.apply(now, [quantized], null));
    expect(kernelCalls("cpu")["fake_quant"]).toBe(before + 1);
    expect(lazy).toEqual(eager);
    for (const gradient of lazy.gradients) {
      expect(gradient.some((value) => value !== 0)).toBe(true);
    }
  });

  it("shares the memory of what it quantizes", () => {
    onTape((tape) => {
      const source = tape.parameter(tensor(x));
      const before = liveTensors();
      const { value } = fakeQuant(tape, source, undefined, params);
      // A view of x, its scales and its zeros.
      expect(liveTensors()).toBe(before + 3);
      source.value.tensor.write(Float64Array.of(123));
      expect(value.tensor.item()).toBe(123);
      expect(value.grid?.scale.shape).toEqual([M, 3]);
    });
  });
});
