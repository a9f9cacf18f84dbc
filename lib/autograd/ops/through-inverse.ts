import { invokeOne } from "../../tensor/invoke.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Graph, type OpPair, tensorOf, type Value, type Var } from "../graph.ts";
import { InverseVar } from "../inverse.ts";
import { inputOperand, linear, plain, product } from "./linear.ts";

const pair: OpPair<null> = {
  name: "through_inverse",
  forward: ([x, inverse]) => ({
    tensor: product(inputOperand(x as Value, false), inputOperand(inverse as Value, true)),
  }),
  backward: ({ g, inputs, output, needs }) => {
    const gx = product(plain(g, false), inputOperand(inputs[1] as Value, false));
    const ga = needs[2] ? matrixGradient(gx, output.tensor, tensorOf(inputs, 2)) : undefined;
    if (needs[0]) return [gx, undefined, ga];
    gx.dispose();
    return [undefined, undefined, ga];
  },
};

/**
 * With X = A^-1, y = x X^T and G = g^T x, the gradient of A is -X^T G X^T = -(g X)^T (x X^T), which is
 * -gx^T y.
 */
function matrixGradient(gx: Tensor, y: Tensor, { shape }: Tensor): Tensor {
  const columns = shape.at(-1) as number;
  const flat = [1, gx.size / columns, columns];
  const [a, b] = [gx.reshape(flat), y.reshape(flat)];
  const gradient = invokeOne("matmul", [a, b], { trans_a: 1, trans_b: 0, alpha: -1 });
  a.dispose();
  b.dispose();
  return gradient;
}

/**
 * x times the transpose of a matrix, as linear, where the matrix may be an inverse that remembers of
 * what (see InverseVar).
 */
export function throughInverse(graph: Graph, x: Var, matrix: Var): Var {
  if (!(matrix instanceof InverseVar)) return linear(graph, x, matrix);
  return graph.apply(pair, [x, matrix.constant, matrix.of], null);
}
