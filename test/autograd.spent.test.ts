// Gradients that an operation alone still looks at, in which its kernel may leave anything.
import { expect, it } from "vitest";
import type { OpPair, Value } from "../lib/autograd/graph.ts";
import { add } from "../lib/autograd/ops/add.ts";
import { linear } from "../lib/autograd/ops/linear.ts";
import { Tape } from "../lib/autograd/tape.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";

const row = (...data: number[]): Tensor => Tensor.from(Float64Array.from(data), [1, data.length]);

it("tells the last of those that were given the same gradient", () => {
  scope(() => {
    const seen: boolean[] = [];
    const watched: OpPair<null> = {
      name: "watched",
      forward: ([x]) => ({ tensor: (x as Value).tensor.reshape([1, 2]) }),
      backward: ({ g, isSpent }) => {
        seen.push(isSpent);
        return [invokeOne("add", [g, g], { alpha: 1 })];
      },
    };
    const tape = new Tape();
    const x = tape.parameter(row(1, 2));
    const [first, second] = [tape.apply(watched, [x], null), tape.apply(watched, [x], null)];
    // Both get the gradient of their sum.
    const sum = add(tape, first, second);
    tape.backward(linear(tape, sum, tape.constant(row(3, 4))));
    expect(seen).toEqual([false, true]);
    expect(Array.from(tape.gradient(x)?.read() ?? [])).toEqual([12, 16]);
    return {};
  });
});
