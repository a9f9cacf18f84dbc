// Results must not depend on the number of threads, nor change from run to run: same bits.
import { afterAll, describe, expect, it } from "vitest";
import { setThreads, threads } from "../lib/tensor/device.ts";
import type { Call, OpCase } from "./cases/case.ts";
import { CASES } from "./cases/index.ts";
import { Draw } from "./helpers/random.ts";
import { makeCall, runCall } from "./helpers/run-op.ts";

const atStart = threads();
afterAll(() => setThreads(atStart));

function bits(op: OpCase, call: Call, count: number): readonly Buffer[] {
  setThreads(count);
  const results = runCall(op, call, { device: "cpu", dtype: "f32" });
  return results.map(({ buffer }) => Buffer.from(buffer));
}

describe("one, two and three threads give the same bits", () => {
  for (const op of CASES) {
    it(op.op, () => {
      const calls = op.sets.map((dims) => makeCall(op, dims, "f32"));
      // One real size, so that there is more than one task to hand out.
      const [real] = op.real;
      if (real) calls.push(op.make(new Draw(3, "f32", true), real));
      for (const call of calls) {
        const [one, again, two, three] = [1, 1, 2, 3].map((count) => bits(op, call, count));
        expect(one, JSON.stringify(call.params)).toBeDefined();
        for (const other of [again, two, three]) {
          const same = one?.every((result, i) => other?.[i]?.equals(result));
          expect(same, `${op.op} ${JSON.stringify(call.params)}`).toBe(true);
        }
      }
    });
  }
});
