/** Records operations and walks them backwards. */

import { AqError } from "../errors.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";
import { disposeValue, type Graph, gradientType, type OpPair, type Var } from "./graph.ts";
import { denseOf } from "./scaled.ts";

interface Node {
  readonly op: OpPair<unknown>;
  readonly inputs: readonly (TapeVar | undefined)[];
  readonly output: TapeVar;
  readonly saved: readonly Tensor[];
  readonly params: unknown;
}

interface TapeVar extends Var {
  readonly tape: Tape;
}

/** A gradient; `own` if it may be written in place (false while it is also another value's). */
interface Gradient {
  tensor: Tensor;
  own: boolean;
}

/**
 * A graph that remembers. One tape is one step: record, `backward`, read the gradients, drop it
 * inside a `scope`. Backward frees what a node saved, and the gradient and value of its output, as
 * soon as the node is done, so the peak is the forward pass plus two gradients.
 */
export class Tape implements Graph {
  readonly records = true;
  #nodes: Node[] = [];
  #gradients = new Map<TapeVar, Gradient>();

  constant(tensor: Tensor): Var {
    return this.#leaf(tensor, false);
  }

  /** A leaf whose gradient is wanted; `rounded` is the same in the type of the products. */
  parameter(tensor: Tensor, rounded?: Tensor): Var {
    return this.#leaf(tensor, true, rounded);
  }

  #leaf(tensor: Tensor, needsGrad: boolean, rounded?: Tensor): TapeVar {
    return { tape: this, value: { tensor, rounded }, needsGrad };
  }

  apply<P>(op: OpPair<P>, inputs: readonly (Var | undefined)[], params: P): Var {
    const own = inputs.map((input) => (input ? this.#mine(op.name, input) : undefined));
    const result = op.forward(
      own.map((input) => input?.value),
      params,
    );
    const needsGrad = own.some((input) => input?.needsGrad);
    const output: TapeVar = {
      tape: this,
      value: { tensor: result.tensor, grid: result.grid, float4: result.float4 },
      needsGrad,
    };
    const saved = result.saved ?? [];
    if (needsGrad) {
      this.#nodes.push({ op: op as OpPair<unknown>, inputs: own, output, saved, params });
    } else {
      for (const tensor of saved) tensor.dispose();
    }
    return output;
  }

  #mine(op: string, given: Var): TapeVar {
    const value = denseOf(given);
    if ((value as Partial<TapeVar>).tape !== this) {
      throw new AqError("AQ_INTERNAL", `${op}: an input belongs to another graph`);
    }
    return value as TapeVar;
  }

  /** Gradients of a one-element loss with respect to every parameter. Once per tape. */
  backward(loss: Var): void {
    const root = this.#mine("backward", loss);
    if (root.value.tensor.size !== 1) {
      throw new AqError(
        "AQ_SHAPE",
        `the loss must have one element, got [${root.value.tensor.shape.join(", ")}]`,
      );
    }
    const one = Tensor.empty(
      root.value.tensor.shape,
      root.value.tensor.dtype,
      root.value.tensor.device,
    );
    invoke("fill", [one], { value: 1 });
    this.#gradients.set(root, { tensor: one, own: true });
    for (let i = this.#nodes.length - 1; i >= 0; i--) {
      const node = this.#nodes[i] as Node;
      this.#step(node);
      this.#nodes.length = i;
    }
  }

  #step(node: Node): void {
    const gradient = this.#gradients.get(node.output);
    if (gradient) {
      const needs = node.inputs.map((input) => input?.needsGrad ?? false);
      const existing = node.inputs.map((input) => {
        const known = input && this.#gradients.get(input);
        return known?.own ? known.tensor : undefined;
      });
      const results = node.op.backward({
        g: gradient.tensor,
        isSpent: !this.#holds(gradient.tensor, node.output),
        inputs: node.inputs.map((input) => input?.value),
        output: node.output.value,
        saved: node.saved,
        params: node.params,
        needs,
        existing,
      });
      if (results.length !== node.inputs.length) {
        throw new AqError(
          "AQ_INTERNAL",
          `${node.op.name}: backward gave ${results.length} gradients for ${node.inputs.length} inputs`,
        );
      }
      for (const [i, input] of node.inputs.entries()) {
        const result = results[i];
        if (!input?.needsGrad) {
          if (result !== gradient.tensor) result?.dispose();
          continue;
        }
        if (!result)
          throw new AqError(
            "AQ_INTERNAL",
            `${node.op.name}: backward gave no gradient for input ${i}`,
          );
        this.#add(node.op.name, i, input, result, result !== gradient.tensor);
      }
      this.#gradients.delete(node.output);
      if (!this.#holds(gradient.tensor)) gradient.tensor.dispose();
    }
    for (const tensor of node.saved) tensor.dispose();
    disposeValue(node.output.value);
  }

  /** Whether the gradient of a value but one is this very tensor: an op may have passed it on to several. */
  #holds(tensor: Tensor, but?: TapeVar): boolean {
    for (const [value, gradient] of this.#gradients) {
      if (value !== but && gradient.tensor === tensor) return true;
    }
    return false;
  }

  #add(op: string, index: number, input: TapeVar, result: Tensor, own: boolean): void {
    const want = input.value.tensor;
    // A GPU's gradients may lie short.
    const type = gradientType(input.value);
    const fits = result.dtype === type || (result.dtype === "bf16" && type !== "f64");
    if (result.size !== want.size || !fits) {
      throw new AqError(
        "AQ_INTERNAL",
        `${op}: the gradient of input ${index} is ${result.dtype} [${result.shape.join(", ")}], the input ${want.dtype} [${want.shape.join(", ")}]`,
      );
    }
    const known = this.#gradients.get(input);
    if (!known) {
      this.#gradients.set(input, { tensor: result, own });
    } else if (known.tensor !== result) {
      if (known.tensor.dtype === "bf16" || result.dtype === "bf16") {
        this.#gradients.set(input, { tensor: shortSum(known.tensor, result), own: true });
        if (!this.#holds(known.tensor)) known.tensor.dispose();
        if (own) result.dispose();
      } else if (known.own) {
        invoke("axpy", [known.tensor, result], { alpha: 1 });
        if (own) result.dispose();
      } else {
        if (own) invoke("axpy", [result, known.tensor], { alpha: 1 });
        const sum = own ? result : invokeOne("add", [known.tensor, result], { alpha: 1 });
        this.#gradients.set(input, { tensor: sum, own: true });
        if (!this.#holds(known.tensor)) known.tensor.dispose();
      }
    } else if (!own) {
      // The same gradient came twice, as in x + x.
      this.#gradients.set(input, {
        tensor: invokeOne("add", [result, result], { alpha: 1 }),
        own: true,
      });
    }
  }

  /** The gradient of a parameter after `backward`, or undefined if the loss does not depend on it. */
  gradient(parameter: Var): Tensor | undefined {
    return this.#gradients.get(this.#mine("gradient", parameter))?.tensor;
  }
}

/** The sum of gradients that may be short, in the type of the first. */
function shortSum(a: Tensor, b: Tensor): Tensor {
  const [f32, own] = [dtypeCode("f32"), dtypeCode(a.dtype)];
  const [wideA, wideB] = [a, b].map((x) => invokeOne("cast", [x], { dtype: f32 })) as [
    Tensor,
    Tensor,
  ];
  invoke("axpy", [wideA, wideB], { alpha: 1 });
  const sum = invokeOne("cast", [wideA], { dtype: own });
  wideA.dispose();
  wideB.dispose();
  return sum;
}
