// Attention over caches on a GPU, where a step may begin to read them before the kernel in front of it is
// over. No test runner in here: the same checks run on machines that have Node.js and the built addons
// alone (bench/check-calibration.ts).
import { openDevice } from "../../lib/tensor/compute-device.ts";
import { dtypeCode } from "../../lib/tensor/dtype.ts";
import { invoke, invokeOne } from "../../lib/tensor/invoke.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import type { DeviceName } from "../../lib/types.ts";
import type { CudaCheck } from "./cuda-checks.ts";
import { Draw } from "./random.ts";

const [HEADS, KV_HEADS, SIZE, SLOTS, CAPACITY] = [8, 4, 128, 3, 150];
const WIDTH = (HEADS + 2 * KV_HEADS) * SIZE;
/** Inputs of different steps. */
const INPUTS = 7;

/** What calls of one check have in common, on one device. */
class Layers {
  readonly #draw = new Draw(5, "f32", true);
  readonly #made: Tensor[] = [];
  readonly #device: DeviceName;
  readonly #turn: readonly Tensor[];
  readonly #slots: Tensor;

  constructor(device: DeviceName) {
    this.#device = device;
    this.#turn = [this.floats([SLOTS, SIZE / 2]), this.floats([SLOTS, SIZE / 2])];
    this.#slots = this.ints([2, 0, 1]);
  }

  #own(tensor: Tensor): Tensor {
    this.#made.push(tensor);
    return tensor;
  }
  floats(shape: readonly number[]): Tensor {
    const data = Float32Array.from(this.#draw.normal(shape).data);
    return this.#own(Tensor.from(data, shape, "f32", this.#device));
  }
  ints(data: readonly number[]): Tensor {
    return this.#own(Tensor.from(Int32Array.from(data), undefined, "i32", this.#device));
  }
  caches(): readonly Tensor[] {
    return [0, 1].map(() => {
      const cache = this.#own(
        Tensor.empty([SLOTS, CAPACITY, KV_HEADS * SIZE], "f16", this.#device),
      );
      invoke("fill", [cache], { value: 0 });
      return cache;
    });
  }
  /** The attention of a token of each slot. */
  attend(x: Tensor, caches: readonly Tensor[], positions: Tensor): Tensor {
    const none = new Array<undefined>(8).fill(undefined);
    const inputs = [x, ...none, ...caches, undefined, undefined, this.#slots, positions];
    const round = dtypeCode("bf16");
    const params = { scale: SIZE ** -0.5, heads: HEADS, kv_heads: KV_HEADS, bits: 16, apart: 1 };
    return this.#own(
      invokeOne("cached_attention", [...inputs, ...this.#turn], { ...params, round }),
    );
  }
  dispose(): void {
    for (const tensor of this.#made) tensor.dispose();
  }
}

const bytesOf = (o: Tensor): Buffer => Buffer.from(o.read().slice().buffer);

/** Results of steps that fill the caches of some layers place by place, each read before the next or not. */
function attendSteps(device: DeviceName, layers: number, isRead: boolean): Buffer[] {
  const all = new Layers(device);
  try {
    const caches = Array.from({ length: layers }, () => all.caches());
    const inputs = Array.from({ length: INPUTS }, () => all.floats([SLOTS, WIDTH]));
    // One slot is some places behind.
    const places = Array.from({ length: CAPACITY }, (_, p) => all.ints([p, p, Math.max(0, p - 5)]));
    const results = places.flatMap((positions, p) =>
      caches.map((kv, layer) => {
        const o = all.attend(inputs[(3 * p + layer) % INPUTS] as Tensor, kv, positions);
        if (isRead) o.read();
        return o;
      }),
    );
    return results.map(bytesOf);
  } finally {
    all.dispose();
  }
}

function behindCheck(layers: number): CudaCheck {
  return {
    name: `attention over the caches of ${layers} layer(s), one step right behind the other`,
    run: async (device) => {
      const opened = openDevice({ device });
      try {
        const [alone, behind] = [true, false].map((isRead) => attendSteps(device, layers, isRead));
        const differ = alone?.filter((o, i) => !o.equals(behind?.[i] as Buffer)).length ?? 0;
        const zeros = alone?.filter((o) => o.every((byte) => byte === 0)).length ?? 0;
        const text = `${differ} of ${alone?.length} results differ, ${zeros} are zeros`;
        return { ok: differ === 0 && zeros === 0 && alone?.length === layers * CAPACITY, text };
      } finally {
        opened.release();
      }
    },
  };
}

/** Positions that the kernel in front makes, in memory that says something else until then. */
const madeCheck: CudaCheck = {
  name: "attention at positions that the kernel in front of it makes",
  run: async (device) => {
    const opened = openDevice({ device });
    const all = new Layers(device);
    try {
      const [x, kv, other] = [all.floats([SLOTS, WIDTH]), all.caches(), all.caches()];
      const far = CAPACITY - 1;
      const attendAt = (first: number, make: boolean): Buffer => {
        const positions = all.ints([first, 1, 1]);
        all.attend(x, other, all.ints([1, 1, 1]));
        const flag = positions.view(0, [1]);
        if (make) invokeOne("all_finite", [x], {}, flag);
        return bytesOf(all.attend(x, kv, positions));
      };
      const [made, known, stale] = [attendAt(far, true), attendAt(1, false), attendAt(far, false)];
      const ok = made?.equals(known as Buffer) === true && !made.equals(stale as Buffer);
      return { ok, text: ok ? "the same" : "not those of the positions" };
    } finally {
      all.dispose();
      opened.release();
    }
  },
};

/** With one layer a step writes what the next one reads; with two, nothing that it reads. */
export const CACHE_CHECKS: readonly CudaCheck[] = [behindCheck(1), behindCheck(2), madeCheck];
