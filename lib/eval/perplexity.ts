/** Perplexity of a checkpoint folder, block by block, with memory bounded by one block. */

import { setImmediate } from "node:timers/promises";
import { Eager, type Graph, type Var } from "../autograd/graph.ts";
import { ReadAhead } from "../checkpoint/read-ahead.ts";
import { AqError } from "../errors.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights, loadOuter } from "../models/load.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { EvaluateResult } from "../types.ts";
import type { EvalModel } from "./eval-model.ts";
import { ResidentBlock } from "./resident-block.ts";

/** Hidden states held at a time; more windows than fit go through the model in turns. */
const STREAM_BYTES = 64 * 2 ** 20;
/** The same on a GPU, where a turn costs less than loading all weights for it. */
const GPU_STREAM_BYTES = 2 * 2 ** 30;
/** Logits held at a time. */
const LOGIT_BYTES = 64 * 2 ** 20;

export interface EvalHooks {
  onWindow?(window: number, windows: number, ppl: number): void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Perplexity over windows of equal length: per window the mean of its T-1 next-token losses, then
 * exp of the mean over windows; standard error from the spread of the windows.
 *
 * Throws: AQ_ARG without windows, AQ_STOPPED when the signal fires, and what reading can throw.
 */
export async function perplexity(
  source: EvalModel,
  windows: readonly Int32Array[],
  hooks: EvalHooks = {},
): Promise<EvaluateResult> {
  const tokens = windows[0]?.length ?? 0;
  if (tokens < 2) throw new AqError("AQ_ARG", "perplexity needs at least one window of two tokens");
  const { model, checkpoint, device } = source;
  const held = device === undefined || device === "cpu" ? STREAM_BYTES : GPU_STREAM_BYTES;
  const perTurn = Math.max(1, Math.floor(held / (4 * tokens * model.shape.hidden)));
  const losses: number[] = [];
  const outer = loadOuter(checkpoint, model, device);
  const context = model.context(tokens, "f32", device);
  const ahead = new ReadAhead(checkpoint);
  try {
    for (let first = 0; first < windows.length; first += perTurn) {
      const turn = windows.slice(first, first + perTurn);
      const states = turn.map((ids) => embedWindow(model, outer, ids));
      try {
        for (let i = 0; i < model.shape.blocks; i++) {
          await runBlock(source, ahead, i, context, states, hooks.signal);
        }
        for (const [n, ids] of turn.entries()) {
          losses.push(await windowLoss(model, outer, states[n] as Tensor, ids));
          hooks.onWindow?.(losses.length - 1, windows.length, summarize(losses, tokens).ppl);
          await breathe(hooks.signal);
        }
      } finally {
        for (const state of states) state.dispose();
      }
    }
  } finally {
    await ahead.stop();
    disposeAll(outer);
    context.dispose();
  }
  return summarize(losses, tokens);
}

async function breathe(signal: AbortSignal | undefined): Promise<void> {
  await setImmediate();
  if (signal?.aborted) throw new AqError("AQ_STOPPED", "the evaluation was stopped");
}

/** Embeds one window: [1, T, C], owned by the caller. */
export function embedWindow(model: Model, outer: LoadedWeights, ids: Int32Array): Tensor {
  return scope(() => {
    const { device } = outer["embedding"] as Tensor;
    return model.embed(outer, Tensor.from(ids, [1, ids.length], "i32", device));
  });
}

/** Replaces every state by block i's output. */
async function runBlock(
  source: EvalModel,
  ahead: ReadAhead,
  i: number,
  context: BlockContext,
  states: Tensor[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const { model, device = "cpu" } = source;
  await ahead.arrived();
  const block = new ResidentBlock(source, i, ahead);
  if (device !== "cpu" && i + 1 < model.shape.blocks) {
    ahead.begin(model.blockTensors(i + 1).map(({ name }) => name));
  }
  try {
    for (const [n, state] of states.entries()) {
      states[n] = scope(() => runOn(source, block, context, state));
      state.dispose();
      await breathe(signal);
    }
  } finally {
    block.dispose();
  }
}

/** A block's output; within a scope. */
function runOn(
  { model }: EvalModel,
  block: ResidentBlock,
  context: BlockContext,
  state: Tensor,
): Tensor {
  const graph = new Eager();
  const x = graph.constant(state);
  return model.block(graph, context, block.weights(graph), x, block.hook(graph)).value.tensor;
}

/** Mean next-token loss of one window; the head runs over a few rows at a time. */
async function windowLoss(
  model: Model,
  outer: LoadedWeights,
  state: Tensor,
  ids: Int32Array,
): Promise<number> {
  const [, tokens, hidden] = state.shape as [number, number, number];
  const rows = Math.max(1, Math.floor(LOGIT_BYTES / (4 * model.shape.vocabulary)));
  const losses = scope(() => {
    const { device } = state;
    const all = Tensor.empty([tokens - 1], "f32", device);
    const targets = Tensor.from(ids.slice(1), [tokens - 1], "i32", device);
    for (let at = 0; at < tokens - 1; at += rows) {
      const count = Math.min(rows, tokens - 1 - at);
      scope(() => {
        const logits = logitsOf(model, outer, state.view(at * hidden, [count, hidden]));
        invokeOne("cross_entropy", [logits, targets.view(at, [count])], {}, all.view(at, [count]));
      });
    }
    return all;
  });
  try {
    let sum = 0;
    for (const loss of await losses.readAsync()) sum += loss;
    return sum / (tokens - 1);
  } finally {
    losses.dispose();
  }
}

/** Logits [..., V] of hidden states [..., C]. */
export function logitsOf(model: Model, outer: LoadedWeights, x: Tensor): Tensor {
  const graph = new Eager();
  return model.head(graph, headWeights(graph, outer), graph.constant(x)).value.tensor;
}

/** The outer weights as constants, but for an embedding that is in its stored dtype. */
export function headWeights(graph: Graph, outer: LoadedWeights): Record<string, Var> {
  return Object.fromEntries(
    Object.entries(outer)
      .filter(([key, t]) => key !== "embedding" || t.dtype === "f32")
      .map(([key, t]) => [key, graph.constant(t)]),
  );
}

/** exp of the mean loss, and its standard error by the delta method. */
function summarize(losses: readonly number[], tokens: number): EvaluateResult {
  const n = losses.length;
  const mean = losses.reduce((sum, x) => sum + x, 0) / n;
  const variance = n > 1 ? losses.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (n - 1) : 0;
  const ppl = Math.exp(mean);
  return { ppl, stderr: ppl * Math.sqrt(variance / n), windows: n, tokens: n * tokens };
}

/**
 * Logits [T, V] of one sequence, for checks against golden values.
 *
 * `hidden`, if given, is called with the states after the embedding and after every block.
 */
export function forwardLogits(
  source: EvalModel,
  ids: Int32Array,
  hidden?: (state: Float32Array, i: number) => void,
): Float32Array {
  const { checkpoint, model } = source;
  const { device } = source;
  const outer = loadOuter(checkpoint, model, device);
  const context = model.context(ids.length, "f32", device);
  try {
    let state = embedWindow(model, outer, ids);
    hidden?.(state.floats(), 0);
    for (let i = 0; i < model.shape.blocks; i++) {
      const block = new ResidentBlock(source, i);
      const next = scope(() => keep(runOn(source, block, context, state)));
      block.dispose();
      state.dispose();
      state = next;
      hidden?.(state.floats(), i + 1);
    }
    const logits = scope(() => ({
      data: logitsOf(model, outer, state.reshape([ids.length, model.shape.hidden])).floats(),
    })).data;
    state.dispose();
    return logits;
  } finally {
    disposeAll(outer);
    context.dispose();
  }
}
