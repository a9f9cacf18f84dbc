// A LLaMA checkpoint of any size whose tensors are made up when they are read: nothing lies in files, and
// what is measured with it goes the way of every model.
import { Checkpoint, type CheckpointTensor } from "../lib/checkpoint/folder.ts";
import type { StackSource } from "../lib/generate/block-stack.ts";
import { openFolderModel } from "../lib/packed/model.ts";
import { Draw } from "../test/helpers/random.ts";

export interface MadeUpModel {
  readonly blocks: number;
  readonly hidden: number;
  readonly mlp: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly maxTokens: number;
  /** Codes of 4 bits with a scale and a zero for so many columns, or numbers in bf16. */
  readonly weights: { readonly group: number; readonly symmetric: boolean } | "bf16";
}

const POOL = 1 << 20;
const CODE_BITS = 4;
/** A zero of 8 for both halves of a byte: symmetric codes. */
const MIDDLE = 0x88;

/** The bits of a positive number in bf16 and in f16. */
const ONE_BF16 = 0x3f80;
const SCALE_F16 = 0x1400; // 2^-10
const BYTES: Readonly<Record<string, number>> = { U8: 1, F16: 2, BF16: 2 };

class MadeUpCheckpoint extends Checkpoint {
  readonly #random = Uint8Array.from(new Draw(1, "f32", true).integers([POOL], 256, "u8").data);
  readonly #normal = bf16(new Draw(2, "f32", true).normal([POOL]).data);
  readonly #symmetric: boolean;

  constructor(config: object, tensors: readonly CheckpointTensor[], symmetric: boolean) {
    const shard = { file: "made-up", metadata: {}, tensors, fd: -1, path: "made-up" };
    super("made-up", JSON.stringify(config), null, [shard]);
    this.#symmetric = symmetric;
  }

  override readInto(
    name: string,
    target: Uint8Array,
    byteOffset = 0,
    length: number = target.byteLength,
  ): void {
    const { dtype } = this.info(name);
    const bytes = target.subarray(0, length);
    const numbers = (): Uint16Array => new Uint16Array(bytes.buffer, bytes.byteOffset, length / 2);
    if (dtype === "U8" && name.endsWith(".zero") && this.#symmetric) bytes.fill(MIDDLE);
    else if (dtype === "U8") repeat(bytes, this.#random, byteOffset);
    else if (dtype === "F16") numbers().fill(SCALE_F16);
    else if (name.includes("norm")) numbers().fill(ONE_BF16);
    else repeat(numbers(), this.#normal, byteOffset / 2);
  }

  override readBytes(name: string): Buffer {
    const bytes = Buffer.from(new ArrayBuffer(this.info(name).bytes));
    this.readInto(name, bytes);
    return bytes;
  }

  override close(): void {}
}

/** Fills `to` from a pool that begins again at its end. */
function repeat<T extends Uint8Array | Uint16Array>(to: T, pool: T, offset: number): void {
  for (let at = 0; at < to.length; ) {
    const from = (offset + at) % pool.length;
    const count = Math.min(pool.length - from, to.length - at);
    to.set(pool.subarray(from, from + count), at);
    at += count;
  }
}

/** Numbers of the size of a 7B model's weights, cut to bf16. */
function bf16(values: ArrayLike<number>): Uint16Array {
  const floats = Float32Array.from(values, (x) => x / 64);
  const words = new Uint32Array(floats.buffer);
  return Uint16Array.from(words, (word) => word >>> 16);
}

/** The blocks of such a model, to be loaded onto a device. */
export function madeUpSource(options: MadeUpModel, device: string): StackSource {
  const { weights, hidden, mlp, heads, kvHeads, blocks, maxTokens } = options;
  const config = {
    model_type: "llama",
    hidden_size: hidden,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    intermediate_size: mlp,
    num_hidden_layers: blocks,
    max_position_embeddings: maxTokens,
    vocab_size: 64,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
  };
  const packed =
    weights === "bf16"
      ? undefined
      : {
          quant_method: "aq",
          format: 1,
          bits: CODE_BITS,
          group_size: weights.group,
          symmetric: weights.symmetric,
        };
  const all = packed ? { ...config, quantization_config: packed } : config;
  const plain = new MadeUpCheckpoint(config, [], false);
  const model = openFolderModel(plain);
  const linears = new Set(model.linears.map(({ key }) => key));
  const tensors: CheckpointTensor[] = [];
  const add = (name: string, dtype: string, shape: readonly number[]): void => {
    const bytes = shape.reduce((a, b) => a * b, 1) * (BYTES[dtype] as number);
    tensors.push({ name, dtype, shape, bytes, offset: 0, file: "made-up" } as CheckpointTensor);
  };
  for (let i = 0; i < blocks; i++) {
    for (const { key, name, shape } of model.blockTensors(i)) {
      if (weights === "bf16" || !linears.has(key)) {
        add(name, "BF16", shape);
        continue;
      }
      const [rows, columns] = shape as [number, number];
      const groups = Math.ceil(columns / weights.group);
      add(`${name}.codes`, "U8", [rows, (columns * CODE_BITS) / 8]);
      add(`${name}.scale`, "F16", [rows, groups]);
      add(`${name}.zero`, "U8", [rows, Math.ceil((groups * CODE_BITS) / 8)]);
    }
  }
  const symmetric = weights !== "bf16" && weights.symmetric;
  return {
    checkpoint: new MadeUpCheckpoint(all, tensors, symmetric),
    model,
    device,
    activations: null,
  };
}
