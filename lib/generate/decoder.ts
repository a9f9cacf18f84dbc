/** A model whose weights stay in memory, one step at a time over the tokens of several sequences. */

import { Eager } from "../autograd/graph.ts";
import { headWeights } from "../eval/perplexity.ts";
import { inProductType, ResidentBlock } from "../eval/resident-block.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { disposeAll, type LoadedWeights, loadOuter } from "../models/load.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { precisionOf } from "../tensor/precision.ts";
import { keep, scope } from "../tensor/scope.ts";
import { Tensor } from "../tensor/tensor.ts";
import { KvCache, type KvType } from "./kv-cache.ts";
import type { LanguageModel } from "./open.ts";

export interface DecoderOptions {
  /** Sequences that can be under way together. */
  readonly slots: number;
  /** Tokens of each. */
  readonly capacity: number;
  /** How keys and values lie. Default: as codes where the model quantizes them to 4 bits, else f32. */
  readonly kv?: KvType | undefined;
}

/** One token of a step. */
export interface StepToken {
  readonly slot: number;
  readonly position: number;
  readonly id: number;
}

export class Decoder {
  readonly model: Model;
  readonly capacity: number;
  readonly slots: number;
  readonly #outer: LoadedWeights;
  readonly #blocks: readonly ResidentBlock[];
  readonly #context: BlockContext;
  readonly #cache: KvCache;

  /** Reads all weights. Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL, AQ_NUMERIC, AQ_OOM. */
  constructor(source: LanguageModel, { slots, capacity, kv }: DecoderOptions) {
    const { checkpoint, model, activations, device } = source;
    this.model = model;
    this.slots = slots;
    this.capacity = capacity;
    const blocks: ResidentBlock[] = [];
    this.#blocks = blocks;
    this.#outer = withHead(loadOuter(checkpoint, model, device));
    this.#context = model.context(capacity, "f32", device);
    try {
      for (let i = 0; i < model.shape.blocks; i++) blocks.push(new ResidentBlock(source, i));
      const { heads, numbers } = activations?.style ?? {};
      const isCodes = activations?.bits === 4 && !activations.hook && !heads && !numbers;
      const type = kv ?? (isCodes ? "int4" : "f32");
      this.#cache = new KvCache(model.shape, { slots, capacity, type, device });
    } catch (error) {
      this.#dispose();
      throw error;
    }
  }

  /** Bytes of the caches. */
  get cacheBytes(): number {
    return this.#cache.bytes;
  }

  /**
   * Runs tokens through the model. Those of one slot may be a piece of a prompt, in the order of their
   * positions. Returns the logits [V] of the tokens at `wanted`, in that order.
   *
   * Throws: AQ_ARG where a slot or a position is outside of the caches, or an id of the vocabulary.
   */
  async step(tokens: readonly StepToken[], wanted: readonly number[]): Promise<Float32Array[]> {
    const { device } = this.#context;
    const { hidden, vocabulary } = this.model.shape;
    const count = tokens.length;
    const logits = scope(() => {
      const ints = (values: Iterable<number>): Tensor =>
        Tensor.from(Int32Array.from(values), undefined, "i32", device);
      const positions = Int32Array.from(tokens, ({ position }) => position);
      const places = {
        slots: ints(tokens.map(({ slot }) => slot)),
        positions: ints(positions),
      };
      const ids = ints(tokens.map(({ id }) => id)).reshape([1, count]);
      const context = this.#contextAt(places.positions);
      let state = keep(this.model.embed(this.#outer, ids, positions));
      for (let i = 0; i < this.#blocks.length; i++) {
        const attend = this.#cache.attend(i, places);
        const next = scope(() => keep(this.#run(i, { ...context, attend }, state)));
        state.dispose();
        state = next;
      }
      if (wanted.length === 0) {
        state.dispose();
        return undefined;
      }
      const rows = invokeOne("gather_rows", [state.reshape([count, hidden]), ints(wanted)], {
        dtype: dtypeCode("f32"),
      });
      state.dispose();
      const graph = new Eager();
      const outer = headWeights(graph, this.#outer);
      return this.model.head(graph, outer, graph.constant(rows)).value.tensor;
    });
    if (!logits) return [];
    try {
      const all = (await logits.readAsync()) as Float32Array;
      return wanted.map((_, n) => all.subarray(n * vocabulary, (n + 1) * vocabulary));
    } finally {
      logits.dispose();
    }
  }

  /** Constants of the block for tokens that stand at these positions, in this order. */
  #contextAt(positions: Tensor): BlockContext {
    const tensors = Object.entries(this.#context.tensors).map(([key, table]) => [
      key,
      invokeOne("gather_rows", [table, positions], { dtype: dtypeCode("f32") }),
    ]);
    return { ...this.#context, tensors: Object.fromEntries(tensors) };
  }

  #run(i: number, context: BlockContext, state: Tensor): Tensor {
    const block = this.#blocks[i] as ResidentBlock;
    const graph = new Eager();
    const x = graph.constant(state);
    return this.model.block(graph, context, block.weights(graph), x, block.hook(graph)).value
      .tensor;
  }

  #dispose(): void {
    for (const block of this.#blocks) block.dispose();
    disposeAll(this.#outer);
    this.#context.dispose();
  }

  /** Frees weights and caches. */
  dispose(): void {
    this.#cache.dispose();
    this.#dispose();
  }
}

/** A head of its own, in the type of the device's products, where those are not of f32. */
function withHead(outer: LoadedWeights): LoadedWeights {
  const head = outer["head"] ?? outer["embedding"];
  if (head?.dtype !== "f32" || precisionOf(head.device) === "f32") return outer;
  if (outer["head"]) return inProductType(outer, new Set(["head"]));
  const copy = invokeOne("cast", [head], { dtype: dtypeCode(precisionOf(head.device)) });
  return { ...outer, head: copy };
}
