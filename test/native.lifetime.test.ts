// Tensors die by scope; what nobody disposes the collector frees; the live count and the engine's
// memory counter come back to where they were.
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { beforeEach, describe, expect, it } from "vitest";
import { memory } from "../lib/tensor/device.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { keep, scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";

let live = 0;
beforeEach(() => {
  live = liveTensors();
});

function ones(n: number): Tensor {
  return Tensor.from(new Float32Array(n).fill(1));
}

describe("dispose", () => {
  it("ends a tensor, and twice is harmless", () => {
    const x = ones(3);
    expect(liveTensors()).toBe(live + 1);
    expect(x.disposed).toBe(false);
    x.dispose();
    x.dispose();
    expect(x.disposed).toBe(true);
    expect(liveTensors()).toBe(live);
  });

  it("gives the memory back", () => {
    const before = memory("cpu").usedBytes;
    const x = Tensor.empty([1 << 20], "f32");
    expect(memory("cpu").usedBytes - before).toBeGreaterThanOrEqual(4 << 20);
    x.dispose();
    expect(memory("cpu").usedBytes).toBe(before);
    expect(memory("cpu").peakBytes).toBeGreaterThanOrEqual(before + (4 << 20));
  });

  it("keeps memory that a view still needs", () => {
    const x = Tensor.from(Float32Array.of(1, 2, 3, 4));
    const tail = x.view(2, [2]);
    x.dispose();
    expect(Array.from(tail.read())).toEqual([3, 4]);
    tail.dispose();
    expect(liveTensors()).toBe(live);
  });
});

describe("a view", () => {
  it("shares memory with its tensor, both ways", () => {
    scope(() => {
      const x = Tensor.from(new Float32Array(6), [2, 3]);
      const row = x.view(3, [3]);
      invoke("fill", [row], { value: 7 });
      expect(Array.from(x.read())).toEqual([0, 0, 0, 7, 7, 7]);
      x.write(Float32Array.of(5), 4 * 4);
      expect(Array.from(row.read())).toEqual([7, 5, 7]);
    });
  });
});

describe("a given output", () => {
  it("is written in place and shares its memory with the result", () => {
    scope(() => {
      const out = ones(2);
      const result = invokeOne("add", [ones(2), ones(2)], { alpha: 1 }, out);
      expect(Array.from(out.read())).toEqual([2, 2]);
      invoke("fill", [result], { value: 9 });
      expect(Array.from(out.read())).toEqual([9, 9]);
    });
  });
});

describe("a scope", () => {
  it("disposes what was made inside", () => {
    const inside = scope(() => {
      const x = ones(4);
      invokeOne("exp", [x], { scale: 1 });
      return { x };
    });
    expect(inside.x.disposed).toBe(true);
    expect(liveTensors()).toBe(live);
  });

  it("hands over a returned tensor, or several", () => {
    const sum = scope(() => invokeOne("add", [ones(2), ones(2)], { alpha: 1 }));
    const [a, b] = scope(() => [ones(1), ones(2), undefined] as const);
    expect([sum.disposed, a?.disposed, b?.disposed]).toEqual([false, false, false]);
    expect(liveTensors()).toBe(live + 3);
    for (const tensor of [sum, a, b]) tensor?.dispose();
    expect(liveTensors()).toBe(live);
  });

  it("leaves what was kept to its owner", () => {
    const kept: Tensor[] = [];
    scope(() => {
      kept.push(keep(ones(2)));
    });
    expect(kept[0]?.disposed).toBe(false);
    kept[0]?.dispose();
  });

  it("passes a returned tensor to the scope around it", () => {
    const seen: Tensor[] = [];
    scope(() => {
      const inner = scope(() => ones(2));
      seen.push(inner);
      expect(inner.disposed).toBe(false);
    });
    expect(seen[0]?.disposed).toBe(true);
    expect(liveTensors()).toBe(live);
  });

  it("cleans up when the body throws", () => {
    const stop = () =>
      scope(() => {
        ones(3);
        throw new Error("stop");
      });
    expect(stop).toThrow("stop");
    expect(liveTensors()).toBe(live);
    // The next scope is the outermost again.
    const x = scope(() => ones(1));
    x.dispose();
    expect(liveTensors()).toBe(live);
  });
});

describe("a disposed tensor", () => {
  it("does not reach the tensor that gets its handle", () => {
    const first = ones(3);
    const { handle } = first;
    first.dispose();
    const second = ones(5);
    expect(second.handle).toBe(handle);
    expect(first.disposed).toBe(true);
    expectAqError(() => first.read(), "AQ_DISPOSED");
    expectAqError(() => invokeOne("add", [first, second], { alpha: 1 }), "AQ_DISPOSED");
    first.dispose();
    expect(second.floats()).toEqual(new Float32Array(5).fill(1));
    second.dispose();
    expect(liveTensors()).toBe(live);
  });
});

describe("the collector", () => {
  it("frees tensors that nobody disposed", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    for (let i = 0; i < 100; i++) ones(1000);
    expect(liveTensors()).toBeGreaterThan(live);
    for (let i = 0; i < 20 && liveTensors() > live; i++) {
      collect();
      // Finalizers run on the event loop.
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(liveTensors()).toBe(live);
  });
});
