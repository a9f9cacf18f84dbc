/** A model's blocks with their weights and caches in memory: new tokens' states in, states out. */

import { Eager } from "../autograd/graph.ts";
import type { EvalModel } from "../eval/eval-model.ts";
import { ResidentBlock } from "../eval/resident-block.ts";
import type { BlockContext, Model } from "../models/family.ts";
import { dtypeCode } from "../tensor/dtype.ts";
import { invokeOne } from "../tensor/invoke.ts";
import { keep, scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { KvCache, type KvType, type Places } from "./kv-cache.ts";

export interface DecoderOptions {
  /** Sequences that can be under way together. */
  readonly slots: number;
  /** Tokens of each. */
  readonly capacity: number;
  /** How keys and values lie. Default: as codes where the model quantizes them to 4 bits, else f32. */
  readonly kv?: KvType | undefined;
  /** Run linears that read the same input as one (lib/models/joined.ts). Default: on a GPU. */
  readonly join?: boolean | undefined;
}

/** What blocks are read from. */
export type StackSource = EvalModel & { readonly device: string };

export class BlockStack {
  readonly #model: Model;
  readonly #blocks: ResidentBlock[] = [];
  readonly #context: BlockContext;
  readonly #cache: KvCache;
  readonly #isJoined: boolean;

  /** Reads the weights of all blocks. Throws: AQ_FILE, AQ_FORMAT, AQ_MODEL, AQ_NUMERIC, AQ_OOM. */
  constructor(source: StackSource, { slots, capacity, kv, join }: DecoderOptions) {
    const { model, activations, device } = source;
    this.#model = model;
    this.#context = model.context(capacity, "f32", device);
    try {
      // Whoever quantizes activations wants each of them.
      this.#isJoined = (join ?? device !== "cpu") && activations === null;
      for (let i = 0; i < model.shape.blocks; i++) {
        this.#blocks.push(new ResidentBlock(source, i, undefined, this.#isJoined));
      }
      const { heads, numbers } = activations?.style ?? {};
      const isCodes = activations?.bits === 4 && !activations.hook && !heads && !numbers;
      const type = kv ?? (isCodes ? "int4" : "f32");
      this.#cache = new KvCache(model.shape, { slots, capacity, type, device });
    } catch (error) {
      this.#disposeWeights();
      throw error;
    }
  }

  /** Bytes of the caches. */
  get cacheBytes(): number {
    return this.#cache.bytes;
  }

  /** States [1, M, C] of tokens behind all blocks; takes the given ones over. Within a scope. */
  run(given: Tensor, places: Places): Tensor {
    const context = this.#contextAt(places.positions);
    let state = given;
    for (let i = 0; i < this.#blocks.length; i++) {
      const caches = {
        attend: this.#cache.attend(i, places),
        attendJoined: this.#isJoined ? this.#cache.attendJoined(i, places) : undefined,
      };
      const next = scope(() => keep(this.#runBlock(i, { ...context, ...caches }, state)));
      state.dispose();
      state = next;
    }
    return state;
  }

  /** Constants of the block for tokens that stand at these positions, in this order. */
  #contextAt(positions: Tensor): BlockContext {
    const tensors = Object.entries(this.#context.tensors).map(([key, table]) => [
      key,
      invokeOne("gather_rows", [table, positions], { dtype: dtypeCode("f32") }),
    ]);
    return { ...this.#context, tensors: Object.fromEntries(tensors) };
  }

  #runBlock(i: number, context: BlockContext, state: Tensor): Tensor {
    const block = this.#blocks[i] as ResidentBlock;
    const graph = new Eager();
    const x = graph.constant(state);
    return this.#model.block(graph, context, block.weights(graph), x, block.hook(graph)).value
      .tensor;
  }

  #disposeWeights(): void {
    for (const block of this.#blocks) block.dispose();
    this.#context.dispose();
  }

  /** Frees weights and caches. */
  dispose(): void {
    this.#cache.dispose();
    this.#disposeWeights();
  }
}
