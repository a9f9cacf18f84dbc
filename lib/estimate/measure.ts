/**
 * How fast this machine does what a run is made of, in about a second: products with their
 * quantizers, attention, and what is neither, each in the model's own shapes as far as they are small.
 */

import { Eager, type Graph, type Var } from "../autograd/graph.ts";
import { attention } from "../autograd/ops/attention.ts";
import { linear } from "../autograd/ops/linear.ts";
import { mse } from "../autograd/ops/mse.ts";
import { scaleWeight } from "../autograd/ops/scale-weight.ts";
import { siluMul } from "../autograd/ops/silu-mul.ts";
import { Tape } from "../autograd/tape.ts";
import type { ModelShape } from "../models/family.ts";
import type { QuantScheme } from "../quant/scheme.ts";
import { tokenQuantizers } from "../quant/tokens.ts";
import { fakeQuantLinears, startClip } from "../quant/weights.ts";
import { capture } from "../tensor/capture.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Largest sides of what is measured: more is not faster, only longer. */
const MAX_SIDE = 768;
const MAX_ROWS = 512;
const MAX_TOKENS = 1024;
/** Time for each measurement, after a first run that warms caches and the thread pool. */
const SLICE_MS = 25;
const FEWEST_RUNS = 2;
/** Times that a GPU does the work before it is waited for, as waiting takes longer than a small op. */
const LAUNCHES = 8;

/** Seconds of a linear [out, in]: what depends on the tokens, for one token, and what does not. */
export interface LinearSpeed {
  /** Training: forward and both gradients. */
  readonly perToken: number;
  /** Training: folds, grids and gradients on the side of the weight. */
  readonly perStep: number;
  readonly forwardPerToken: number;
}

export interface AttentionSpeed {
  /** Seconds of one window, all heads. */
  readonly training: number;
  readonly forward: number;
}

/**
 * Smallest of several times, in seconds: the one that others disturbed least. Of a GPU its own time: in
 * a run it has the next work before it has done the last.
 */
function seconds(device: string, work: () => void): number {
  work();
  finish(device);
  const graph = device === "cpu" ? undefined : capture(device, work);
  try {
    return graph
      ? fastest(() => {
          for (let i = 0; i < LAUNCHES; i++) graph.launch();
          finish(device);
        }) / LAUNCHES
      : fastest(() => {
          work();
          finish(device);
        });
  } finally {
    graph?.dispose();
  }
}

function fastest(body: () => void): number {
  let best = Number.POSITIVE_INFINITY;
  const until = performance.now() + SLICE_MS;
  for (let runs = 0; runs < FEWEST_RUNS || performance.now() < until; runs++) {
    const start = performance.now();
    body();
    best = Math.min(best, performance.now() - start);
  }
  return best / 1000;
}

/** Waits for what a GPU was given; the CPU has done it already. */
function finish(device: string): void {
  if (device !== "cpu") scope(() => Tensor.from(Float32Array.of(0), [1], "f32", device).item());
}

/** Values that look like activations; which ones does not matter to the time. */
function noise(device: string, ...shape: number[]): Tensor {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
  let state = 1;
  for (let i = 0; i < data.length; i++) {
    state = (state * 48271) % 2147483647;
    data[i] = state / 2147483647 - 0.5;
  }
  return Tensor.from(data, shape, "f32", device);
}

/** Reduces to a loss and goes back, as a step does. */
function backward(tape: Tape, y: Var): void {
  const { shape, dtype, device } = y.value.tensor;
  const target = tape.constant(Tensor.empty(shape, dtype, device));
  tape.backward(mse(tape, y, target));
}

/** An activation as training sees it; which one does not matter to the time. */
const quantizeTokens = (graph: Graph, x: Var, scheme: QuantScheme, group: number): Var =>
  tokenQuantizers(scheme, {}).apply(graph, "", x, group);

/** A weight as training reads it: in 16 bits on a GPU that multiplies in bf16. */
function asTrained(w: Tensor): Tensor {
  if (precisionOf(w.device) !== "bf16") return w;
  return invokeOne("cast", [w], { dtype: dtypeCode("f16") });
}

/**
 * Measures a linear [out, in] at two numbers of tokens and tells the two kinds of cost apart. Without a
 * scheme it is not quantized.
 */
export function measureLinear(
  out: number,
  columns: number,
  scheme: QuantScheme | null,
  device: string,
): LinearSpeed {
  const [o, i] = [Math.min(out, MAX_SIDE), Math.min(columns, MAX_SIDE)];
  const scale = (out * columns) / (o * i);
  return scope(() => {
    const w = noise(device, o, i);
    const trained = asTrained(w);
    const factor = Tensor.from(new Float32Array(i).fill(1), [i], "f32", device);
    const start = scheme && startClip(o, i, scheme);
    const clip = start && Tensor.from(start.data, start.shape, "f32", device);
    const step = (x: Tensor): void =>
      scope(() => {
        const tape = new Tape();
        const columnsVar = tape.parameter(factor);
        const folded = scaleWeight(tape, tape.constant(trained), { columns: columnsVar });
        const input = tape.parameter(x);
        if (!scheme || !clip) return backward(tape, linear(tape, input, folded));
        const weights = { w: folded };
        const learned = { clip: tape.parameter(clip) };
        fakeQuantLinears(tape, weights, { scheme, fused: [["w"]] }, () => learned);
        return backward(tape, linear(tape, quantizeTokens(tape, input, scheme, 0), weights.w));
      });
    const few = noise(device, MAX_ROWS / 4, i);
    const many = noise(device, MAX_ROWS, i);
    const short = seconds(device, () => step(few));
    const long = seconds(device, () => step(many));
    const perToken = Math.max(0, long - short) / (0.75 * MAX_ROWS);
    const forward = seconds(device, () =>
      scope(() => {
        const graph = new Eager();
        linear(graph, graph.constant(many), graph.constant(w));
      }),
    );
    return {
      perToken: perToken * scale,
      perStep: Math.max(0, short - (perToken * MAX_ROWS) / 4) * scale,
      forwardPerToken: (forward / MAX_ROWS) * scale,
    };
  });
}

/** Measures causal attention over some heads, and extends to all heads and the whole window. */
export function measureAttention(
  { heads, kvHeads, headDim }: ModelShape,
  tokens: number,
  scheme: QuantScheme,
  device: string,
): AttentionSpeed {
  const t = Math.min(tokens, MAX_TOKENS);
  const shared = heads / kvHeads;
  const kv = Math.min(kvHeads, Math.max(1, Math.floor(8 / shared)));
  const scale = (kvHeads / kv) * (tokens / t) ** 2;
  const params = { heads: kv * shared, kvHeads: kv, scale: 1 / Math.sqrt(headDim) };
  return scope(() => {
    const [q, k, v] = [kv * shared, kv, kv].map((count) =>
      noise(device, 1, t, count * headDim),
    ) as [Tensor, Tensor, Tensor];
    const training = seconds(device, () =>
      scope(() => {
        const tape = new Tape();
        const [a, b, c] = [q, k, v].map((x) =>
          quantizeTokens(tape, tape.parameter(x), scheme, headDim),
        ) as [Var, Var, Var];
        backward(tape, attention(tape, a, b, c, params));
      }),
    );
    const forward = seconds(device, () =>
      scope(() => {
        const graph = new Eager();
        const [a, b, c] = [q, k, v].map((x) => graph.constant(x)) as [Var, Var, Var];
        attention(graph, a, b, c, params);
      }),
    );
    return { training: training * scale, forward: forward * scale };
  });
}

/** Seconds of an elementwise pair, forward and backward, for each element of its output. */
export function measureElementwise(width: number, device: string): number {
  const columns = Math.min(width, MAX_SIDE);
  return scope(() => {
    const [gate, up] = [noise(device, MAX_ROWS, columns), noise(device, MAX_ROWS, columns)];
    const time = seconds(device, () =>
      scope(() => {
        const tape = new Tape();
        backward(tape, siluMul(tape, tape.parameter(gate), tape.parameter(up)));
      }),
    );
    return time / (MAX_ROWS * columns);
  });
}

/** Seconds of a call that computes next to nothing: what every op costs however small it is. */
export function measureCall(device: string): number {
  const calls = 20;
  return scope(() => {
    const x = noise(device, 1, 8);
    const time = seconds(device, () =>
      scope(() => {
        const graph = new Eager();
        const y = graph.constant(x);
        for (let i = 0; i < calls; i++) siluMul(graph, y, y);
      }),
    );
    return time / calls;
  });
}
