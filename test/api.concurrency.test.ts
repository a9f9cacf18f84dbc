// The API as a program uses it: several runs in one process, interleaved or in worker threads, each
// with its own events and its own signal, and each with the result that it has alone.
import * as fs from "node:fs";
import * as path from "node:path";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { doctor, estimate, evaluate, inspect, quantize } from "../lib/index.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent, QuantizeOptions } from "../lib/types.ts";
import { packageRoot } from "../lib/util/package.ts";
import { BOOKS, firstBlocks, TRAINED } from "./helpers/fixture.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const SMALL = { calib: BOOKS, nsamples: 3, seqlen: 32, epochs: 2, device: "cpu" } as const;

function weights(out: string): Buffer {
  return fs.readFileSync(path.join(out, "model.safetensors"));
}

describe("runs in one process", () => {
  it("interleave, and each comes out as it does alone", async () => {
    const model = firstBlocks(tempFolder(), 2);
    const settings: Partial<QuantizeOptions>[] = [
      { wbits: 4, abits: 4 },
      { wbits: 3, recipe: "affine", groupSize: 32 },
    ];
    const alone: string[] = [];
    for (const own of settings) {
      alone.push((await quantize({ ...SMALL, ...own, model, out: tempFolder() })).out);
    }
    const live = liveTensors();
    const order: number[] = [];
    const events: QuantizeEvent[][] = [[], []];
    const together = await Promise.all(
      settings.map((own, i) =>
        quantize(
          { ...SMALL, ...own, model, out: tempFolder() },
          {
            onEvent: (event) => {
              events[i]?.push(event);
              if (event.event === "step") order.push(i);
            },
          },
        ),
      ),
    );
    expect(liveTensors()).toBe(live);
    // Steps of both alternate: neither run waited for the other.
    expect(order.slice(1).filter((run, i) => run !== order[i]).length).toBeGreaterThan(4);
    for (const [i, { out }] of together.entries()) {
      expect(weights(out).equals(weights(alone[i] as string)), `run ${i}`).toBe(true);
      expect(events[i]?.at(-1)).toMatchObject({ event: "done", out });
    }
  });

  it("go on when another one is stopped or its listener throws", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const options = { ...SMALL, model, wbits: 3 } as const;
    const alone = await quantize({ ...options, out: tempFolder() });
    const live = liveTensors();
    const stop = new AbortController();
    const [whole, stopped, broken] = await Promise.allSettled([
      quantize({ ...options, out: tempFolder() }),
      quantize(
        { ...options, out: tempFolder() },
        { signal: stop.signal, onEvent: ({ event }) => event === "step" && stop.abort() },
      ),
      quantize(
        { ...options, out: tempFolder() },
        {
          onEvent: ({ event }) => {
            if (event === "epoch") throw new RangeError("a listener's own error");
          },
        },
      ),
    ]);
    expect(stopped).toMatchObject({ status: "rejected", reason: { code: "AQ_STOPPED" } });
    expect(broken).toMatchObject({ status: "rejected", reason: { name: "RangeError" } });
    expect(whole.status).toBe("fulfilled");
    if (whole.status === "fulfilled") {
      expect(weights(whole.value.out).equals(weights(alone.out))).toBe(true);
    }
    expect(liveTensors()).toBe(live);
  });

  it("refuse to share an output folder, and the first one wins", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const out = tempFolder();
    const options = { ...SMALL, model, out, wbits: 4, recipe: "affine" } as const;
    const [first, second] = await Promise.allSettled([quantize(options), quantize(options)]);
    expect(first?.status).toBe("fulfilled");
    expect(second).toMatchObject({ status: "rejected", reason: { name: "AqError" } });
  });

  it("may be evaluated, inspected and estimated meanwhile", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const live = liveTensors();
    const text = { text: BOOKS, seqlen: 32, windows: 4, device: "cpu" } as const;
    const expected = await evaluate({ model, ...text });
    const run = quantize({ ...SMALL, model, out: tempFolder(), wbits: 4 });
    const [measured] = await Promise.all([evaluate({ model, ...text }), run]);
    expect(measured).toEqual(expected);
    expect(inspect({ model }).blocks).toBe(1);
    expect(estimate({ ...SMALL, model }).blocks).toBe(1);
    expect(doctor().usable).toBe(true);
    expect(liveTensors()).toBe(live);
  });
});

const BUILT = path.join(packageRoot(), "dist", "lib", "index.js");
const WORKER = `
const { parentPort, workerData } = require("node:worker_threads");
import(workerData.module).then(async ({ quantize }) => {
  const stop = new AbortController();
  let steps = 0;
  try {
    const { out, pplAfter } = await quantize(workerData.options, {
      signal: stop.signal,
      onEvent: ({ event }) => {
        if (event === "step" && ++steps === workerData.stopAfter) stop.abort();
      },
    });
    parentPort.postMessage({ out, pplAfter, steps });
  } catch (error) {
    parentPort.postMessage({ code: error.code, message: error.message, steps });
  }
});
`;

interface Answer {
  readonly out?: string;
  readonly pplAfter?: number;
  readonly code?: string;
  readonly message?: string;
  readonly steps: number;
}

function inWorker(options: QuantizeOptions, stopAfter = 0): Promise<Answer> {
  const workerData = { module: BUILT, options, stopAfter };
  const worker = new Worker(WORKER, { eval: true, workerData });
  return new Promise((resolve, reject) => {
    worker.once("message", (answer: Answer) => {
      worker.terminate().then(() => resolve(answer), reject);
    });
    worker.once("error", reject);
  });
}

describe("runs in worker threads", () => {
  it("at the same time come out as in the main thread", async () => {
    const model = firstBlocks(tempFolder(), 1);
    const options = { ...SMALL, model, wbits: 4, abits: 4 } as const;
    const here = await quantize({ ...options, out: tempFolder() });
    const [one, two, stopped] = await Promise.all([
      inWorker({ ...options, out: tempFolder() }),
      inWorker({ ...options, out: tempFolder() }),
      inWorker({ ...options, out: tempFolder() }, 2),
    ]);
    for (const answer of [one, two]) {
      expect(answer).toMatchObject({ pplAfter: here.pplAfter });
      expect(weights(answer.out as string).equals(weights(here.out))).toBe(true);
    }
    expect(stopped).toMatchObject({ code: "AQ_STOPPED", steps: 2 });
    expect(stopped.message).toMatch(/stopped in block/);
  });

  it("report errors as in the main thread", async () => {
    const answer = await inWorker({ ...SMALL, model: TRAINED, out: tempFolder(), wbits: 9 });
    expect(answer).toMatchObject({ code: "AQ_ARG" });
    expect(answer.message).toContain("wbits");
  });
});
