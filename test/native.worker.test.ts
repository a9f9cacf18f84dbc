// The addon in worker threads: several environments at once share the engine, each counts its own
// tensors, and the end of a worker, orderly or not, harms nobody.
import { setTimeout } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { native } from "../lib/native/load.ts";
import { invokeOne } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import { liveTensors, Tensor } from "../lib/tensor/tensor.ts";
import { packageRoot } from "../lib/util/package.ts";

// Plain JavaScript: a worker cannot load TypeScript. It squares what it is told, and keeps its
// tensors, so that they are alive when the thread ends.
const SOURCE = `
const { createRequire } = require("node:module");
const { parentPort, workerData } = require("node:worker_threads");
const core = createRequire(workerData.root + "/package.json")("node-gyp-build")(workerData.root);
const mul = core.ops().findIndex((op) => op.name === "mul");
const F32 = 1;
const kept = [];
parentPort.on("message", ({ value, rounds }) => {
  let result;
  for (let i = 0; i < rounds; i++) {
    const x = core.empty("cpu", F32, [100000]);
    x.write(new Float32Array(100000).fill(value));
    const [y] = core.invoke(mul, [x, x], [1]);
    result = y.read(new Float32Array(100000))[99999];
    if (kept.length < 10) kept.push(x, y);
    else { x.dispose(); y.dispose(); }
  }
  parentPort.postMessage({ result, live: core.liveTensors() });
});
`;

interface Answer {
  readonly result: number;
  readonly live: number;
}

function start(): Worker {
  return new Worker(SOURCE, { eval: true, workerData: { root: packageRoot() } });
}

function ask(worker: Worker, value: number, rounds: number): Promise<Answer> {
  return new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
    worker.postMessage({ value, rounds });
  });
}

function square(value: number): number | undefined {
  return scope(() => {
    const x = Tensor.from(new Float32Array(1000).fill(value));
    return invokeOne("mul", [x, x], { alpha: 1 }).read()[999];
  });
}

describe("the addon in workers", () => {
  it("runs in several at once, each with its own count of tensors", async () => {
    const before = liveTensors();
    const workers = [2, 3, 4].map(() => start());
    const answers = await Promise.all(workers.map((worker, i) => ask(worker, i + 2, 30)));
    expect(answers.map(({ result }) => result)).toEqual([4, 9, 16]);
    expect(answers.map(({ live }) => live)).toEqual([10, 10, 10]);
    expect(liveTensors()).toBe(before);
    expect(square(5)).toBe(25);
    await Promise.all(workers.map((worker) => worker.terminate()));
    expect(square(6)).toBe(36);
  });

  it("survives workers that are stopped in the middle of their work", async () => {
    const used = native().memory("cpu").usedBytes;
    for (let round = 0; round < 6; round++) {
      const workers = [start(), start()];
      await Promise.all(workers.map((worker) => ask(worker, 2, 1)));
      for (const worker of workers) worker.postMessage({ value: 3, rounds: 1_000_000 });
      expect(square(round)).toBe(round * round);
      await setTimeout(5);
      await Promise.all(workers.map((worker) => worker.terminate()));
    }
    expect(square(7)).toBe(49);
    expect(native().memory("cpu").usedBytes).toBe(used);
  });

  it("loads again after every worker has gone", async () => {
    const worker = start();
    const { result } = await ask(worker, 8, 1);
    expect(result).toBe(64);
    await worker.terminate();
  });
});
