// Nothing may be left out: every op of the registry has a case, every case an op, every gradient op
// names its forward, and every autograd pair is in a graph case.
import { readdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { opInfo, opNames } from "../lib/tensor/invoke.ts";
import { GRAPH_CASES } from "./cases/graph.ts";
import { CASES } from "./cases/index.ts";
import { makeCall } from "./helpers/run-op.ts";

const covered = CASES.map(({ op }) => op);

describe("the cases", () => {
  it("cover every op of the registry, each once", () => {
    expect([...covered].sort()).toEqual([...opNames()].sort());
  });

  it("have sets for tests and sets of real models", () => {
    for (const op of CASES) {
      expect(op.sets.length, op.op).toBeGreaterThan(0);
      expect(op.real.length, op.op).toBeGreaterThan(0);
    }
  });

  it("check every gradient op as a gradient of an op that exists", () => {
    for (const { op, gradient } of CASES) {
      expect(gradient !== undefined, op).toBe(op.endsWith("_grad"));
      if (gradient) expect(covered, op).toContain(gradient.forward);
    }
  });

  it("give the inputs and parameters of the registry, and compare what the op writes", () => {
    for (const op of CASES) {
      const { inputs, params } = opInfo(op.op);
      const writes = inputs.flatMap(({ mutable }, i) => (mutable ? [i] : []));
      expect(op.writes ?? [], op.op).toEqual(writes);
      for (const dims of op.sets) {
        const call = makeCall(op, dims, "f32");
        if (op.repeatFrom === undefined) expect(call.inputs.length, op.op).toBe(inputs.length);
        expect(Object.keys(call.params).sort(), op.op).toEqual(
          params.map(({ name }) => name).sort(),
        );
      }
    }
  });

  it("leave out every optional input in some set", () => {
    for (const op of CASES) {
      const calls = op.sets.map((dims) => makeCall(op, dims, "f32"));
      for (const [i, { name, optional }] of opInfo(op.op).inputs.entries()) {
        if (!optional) continue;
        const given = calls.map(({ inputs }) => inputs[i] !== undefined);
        expect(given, `${op.op} ${name}`).toContain(true);
        expect(given, `${op.op} ${name}`).toContain(false);
      }
    }
  });
});

describe("the graph cases", () => {
  it("exercise every pair of lib/autograd/ops", () => {
    const files = readdirSync(new URL("../lib/autograd/ops", import.meta.url));
    const pairs = new Set(GRAPH_CASES.flatMap((graphCase) => graphCase.pairs));
    expect([...pairs].sort()).toEqual(files.map((file) => file.replace(/\.ts$/, "")).sort());
  });
});
