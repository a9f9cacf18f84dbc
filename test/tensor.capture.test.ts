// Recorded sequences of ops: a run gives the bytes of the ops one by one, whatever else happens to
// memory in between. The CPU does not record.
import { describe, expect, it } from "vitest";
import { capture } from "../lib/tensor/capture.ts";
import { memory } from "../lib/tensor/device.ts";
import { invoke, invokeOne, kernelCalls } from "../lib/tensor/invoke.ts";
import { keep, scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { devices } from "./helpers/device.ts";

const device = devices().find((name) => name.startsWith("cuda"));
const RATES = { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };

describe("on the CPU", () => {
  it("nothing is recorded, and the body does not run", () => {
    let ran = false;
    const graph = capture("cpu", () => {
      ran = true;
    });
    expect(graph).toBeUndefined();
    expect(ran).toBe(false);
  });
});

describe.skipIf(device === undefined)("on a GPU", () => {
  const gpu = device as string;
  const on = (...values: number[]): Tensor =>
    Tensor.from(Float32Array.from(values), [values.length], "f32", gpu);

  /** Two rounds of p -= adam(p * x) with temporaries that come and go. */
  function makeTraining() {
    const [p, m, v, x] = [on(1, 2, 3), on(0, 0, 0), on(0, 0, 0), on(1, 1, 1)];
    const schedule = Tensor.from(Float64Array.of(1, 1), [2], "f64", gpu);
    const step = (): void =>
      scope(() => {
        const g = invokeOne("mul", [invokeOne("exp", [p], { scale: -1 }), x], { alpha: 2 });
        const guard = invokeOne("all_finite", [g]);
        invoke("adam", [guard, schedule, p, g, m, v], RATES);
      });
    const feed = (i: number): void => {
      x.write(Float32Array.of(i, 1 - i, 0.5));
      schedule.write(Float64Array.of(1 / (1 + i), i + 1));
    };
    const state = (): number[] => [p, m, v].flatMap((tensor) => [...tensor.floats()]);
    return { step, feed, state };
  }

  it("runs give what the ops give, and count as their calls", () => {
    const [own, eager] = [makeTraining(), makeTraining()];
    for (const training of [own, eager]) {
      training.feed(0);
      training.step();
    }
    const before = kernelCalls("cuda")["adam"] ?? 0;
    const graph = capture(gpu, own.step);
    expect(kernelCalls("cuda")["adam"]).toBe(before);
    for (let i = 1; i < 20; i++) {
      own.feed(i);
      graph?.launch();
      eager.feed(i);
      eager.step();
    }
    expect(own.state()).toEqual(eager.state());
    expect(kernelCalls("cuda")["adam"]).toBe(before + 2 * 19);
    graph?.dispose();
  });

  it.each(["graph", "result"])("memory goes back when both are gone, the %s first", (first) => {
    const x = on(1, 2, 3);
    const before = memory(gpu).usedBytes;
    let y: Tensor | undefined;
    const graph = capture(gpu, () => {
      y = scope(() => keep(invokeOne("mul", [x, x], { alpha: 2 })));
    });
    graph?.launch();
    expect([...(y as Tensor).floats()]).toEqual([2, 8, 18]);
    x.write(Float32Array.of(0, 1, 0));
    graph?.launch();
    if (first === "graph") graph?.dispose();
    expect([...(y as Tensor).floats()]).toEqual([0, 2, 0]);
    y?.dispose();
    graph?.dispose();
    expect(memory(gpu).usedBytes).toBe(before);
    expect(() => graph?.launch()).toThrow("used after dispose()");
    x.dispose();
  });

  it("a tensor that is disposed while recording is held for the runs", () => {
    const x = on(3, 4);
    let y: Tensor | undefined;
    const graph = capture(gpu, () => {
      y = invokeOne("mul", [x, x], { alpha: 1 });
      x.dispose();
    });
    const others = [on(7, 7), on(7, 7)];
    graph?.launch();
    expect([...(y as Tensor).floats()]).toEqual([9, 16]);
    for (const tensor of others) tensor.dispose();
    y?.dispose();
    graph?.dispose();
  });

  it.each<[string, (x: Tensor) => void]>([
    ["a read", (x) => void x.read()],
    ["a write", (x) => x.write(Float32Array.of(1))],
    ["a new tensor from JavaScript", () => on(1).dispose()],
  ])("%s cannot be recorded, and everything goes on without", (_, body) => {
    const x = on(3);
    const before = memory(gpu).usedBytes;
    const graph = capture(gpu, () => {
      scope(() => {
        invokeOne("mul", [x, x], { alpha: 1 });
        body(x);
      });
    });
    expect(graph).toBeUndefined();
    expect(memory(gpu).usedBytes).toBe(before);
    expect(invokeOne("mul", [x, x], { alpha: 1 }).item()).toBe(9);
  });

  it("what the body throws is thrown", () => {
    const broken = (): void => {
      throw new RangeError("mine");
    };
    expect(() => capture(gpu, broken)).toThrow("mine");
    expect(on(1).item()).toBe(1);
  });
});
