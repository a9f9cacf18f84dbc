/** Keys and values of the tokens that a decoder has seen, for several sequences at a time. */

import { materialize, type Value, type Var } from "../autograd/graph.ts";
import type { Attend, AttendJoined, ModelShape } from "../models/family.ts";
import type { DType } from "../tensor/dtype.ts";
import { invoke, invokeOne } from "../tensor/invoke.ts";
import { Tensor } from "../tensor/tensor.ts";

/** How keys and values lie. */
export type KvType = "f32" | "f16" | "bf16" | "int4";

export interface KvCacheOptions {
  /** Sequences that can be under way together. */
  readonly slots: number;
  /** Tokens of each. */
  readonly capacity: number;
  readonly type: KvType;
  readonly device: string;
}

/** One block's caches. Places hold what was written last; nothing needs to be cleared between uses. */
interface Layer {
  readonly keys: Tensor;
  readonly values: Tensor;
  /** (scale, zero) of each place and head, with codes. */
  readonly grids: readonly [Tensor, Tensor] | undefined;
}

/** Which token of a step belongs where: slot and position of each. */
export interface Places {
  /** i32 [M] */
  readonly slots: Tensor;
  readonly positions: Tensor;
  /** No two of the tokens are of one slot. */
  readonly apart: boolean;
}

export class KvCache {
  readonly slots: number;
  readonly capacity: number;
  readonly type: KvType;
  readonly #layers: Layer[] = [];

  /** Throws: AQ_OOM. */
  constructor({ blocks, kvHeads, headDim }: ModelShape, options: KvCacheOptions) {
    const { slots, capacity, type, device } = options;
    this.slots = slots;
    this.capacity = capacity;
    this.type = type;
    const isCodes = type === "int4";
    const width = kvHeads * (isCodes ? Math.ceil(headDim / 2) : headDim);
    const make = (shape: readonly number[], dtype: DType): Tensor => {
      const tensor = Tensor.empty(shape, dtype, device);
      invoke("fill", [tensor], { value: 0 });
      return tensor;
    };
    try {
      for (let i = 0; i < blocks; i++) {
        const cache = (): Tensor => make([slots, capacity, width], isCodes ? "u8" : type);
        const grid = (): Tensor => make([slots, capacity, kvHeads, 2], "f32");
        this.#layers.push({
          keys: cache(),
          values: cache(),
          grids: isCodes ? [grid(), grid()] : undefined,
        });
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Attention of block i for tokens at `places`: writes their keys and values, then looks back. */
  attend(i: number, { slots, positions, apart }: Places): Attend {
    const { keys, values, grids } = this.#layers[i] as Layer;
    return (graph, q, k, v, { heads, kvHeads, scale }) => {
      const made: Tensor[] = [];
      // Codes in the cache need grids per token and head; others are applied first.
      const own = [q, k, v].map((x, n) => onHeads(x, n === 0 ? heads : kvHeads, made));
      const gridsOf = own.flatMap(({ grid }) => [grid?.scale, grid?.zero]);
      const bits = own.find(({ grid }) => grid)?.grid?.bits ?? 0;
      const o = invokeOne(
        "cached_attention",
        [
          ...own.map(({ tensor }) => tensor.reshape([slots.size, tensor.size / slots.size])),
          ...gridsOf,
          keys,
          values,
          grids?.[0],
          grids?.[1],
          slots,
          positions,
        ],
        { scale, heads, kv_heads: kvHeads, bits, apart: apart ? 1 : 0, round: 0 },
      );
      for (const tensor of made) tensor.dispose();
      return graph.constant(o.reshape(q.value.tensor.shape));
    };
  }

  /** The same of q, k and v side by side, without grids. */
  attendJoined(i: number, { slots, positions, apart }: Places): AttendJoined {
    const { keys, values } = this.#layers[i] as Layer;
    return (graph, qkv, { heads, kvHeads, scale, turn, round }) => {
      const { tensor } = qkv.value;
      const [tokens, width] = [slots.size, tensor.size / slots.size];
      const none = new Array<undefined>(8).fill(undefined);
      const o = invokeOne(
        "cached_attention",
        [
          tensor.reshape([tokens, width]),
          ...none,
          keys,
          values,
          undefined,
          undefined,
          slots,
          positions,
          turn?.cos,
          turn?.sin,
        ],
        { scale, heads, kv_heads: kvHeads, bits: 16, apart: apart ? 1 : 0, round },
      );
      return graph.constant(o.reshape([1, tokens, o.size / tokens]));
    };
  }

  /** Bytes of all layers. */
  get bytes(): number {
    const size: Record<string, number> = { f32: 4, f16: 2, bf16: 2, u8: 1 };
    const of = (t: Tensor): number => t.size * (size[t.dtype] ?? 0);
    return this.#layers.reduce(
      (sum, { keys, values, grids }) =>
        sum + [keys, values, ...(grids ?? [])].reduce((all, t) => all + of(t), 0),
      0,
    );
  }

  dispose(): void {
    for (const { keys, values, grids } of this.#layers) {
      for (const tensor of [keys, values, ...(grids ?? [])]) tensor.dispose();
    }
    this.#layers.length = 0;
  }
}

/** A value whose grid, if it has one, is per token and head. */
function onHeads({ value }: Var, heads: number, made: Tensor[]): Value {
  const { tensor, grid } = value;
  if (!grid) return value;
  const size = (tensor.shape.at(-1) as number) / heads;
  if (grid.scale.size * size === tensor.size) return value;
  made.push(materialize(value));
  return { tensor: made.at(-1) as Tensor };
}
