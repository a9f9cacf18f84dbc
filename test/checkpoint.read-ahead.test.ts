// Reading ahead gives the very bytes, one wish at a time, and never an error of its own.
import { describe, expect, it } from "vitest";
import { type Checkpoint, openCheckpoint } from "../lib/checkpoint/folder.ts";
import { ReadAhead } from "../lib/checkpoint/read-ahead.ts";
import { loadBlock } from "../lib/models/load.ts";
import { openModel } from "../lib/models/registry.ts";
import { scope } from "../lib/tensor/scope.ts";
import { TRAINED } from "./helpers/fixture.ts";

async function withCheckpoint(body: (checkpoint: Checkpoint) => Promise<void>): Promise<void> {
  const checkpoint = openCheckpoint(TRAINED);
  try {
    await body(checkpoint);
  } finally {
    checkpoint.close();
  }
}

const names = (checkpoint: Checkpoint): string[] => [...checkpoint.tensors.keys()];

describe("reading ahead", () => {
  it("gives the bytes of a tensor once", () =>
    withCheckpoint(async (checkpoint) => {
      const ahead = new ReadAhead(checkpoint);
      const wanted = names(checkpoint).slice(0, 4);
      ahead.begin(wanted);
      expect(ahead.take("no such tensor")).toBeUndefined();
      await ahead.arrived();
      for (const name of wanted) {
        expect(checkpoint.readBytes(name).equals(ahead.take(name) as Uint8Array), name).toBe(true);
        expect(ahead.take(name)).toBeUndefined();
      }
    }));

  it("holds one wish alone", () =>
    withCheckpoint(async (checkpoint) => {
      const [first, second] = names(checkpoint) as [string, string];
      const ahead = new ReadAhead(checkpoint);
      ahead.begin([first]);
      await ahead.arrived();
      ahead.begin([second]);
      await ahead.arrived();
      expect(ahead.take(first)).toBeUndefined();
      expect(ahead.take(second)).toBeDefined();
      ahead.begin([first]);
      ahead.begin([second]);
      await ahead.stop();
      expect(ahead.take(second)).toBeUndefined();
    }));

  it("leaves what cannot be read to whoever reads it himself", async () => {
    const checkpoint = openCheckpoint(TRAINED);
    const ahead = new ReadAhead(checkpoint);
    ahead.begin(["no such tensor", ...names(checkpoint)]);
    await ahead.arrived();
    checkpoint.close();
    ahead.begin(names(checkpoint));
    await ahead.arrived();
    expect(ahead.take(names(checkpoint)[0] as string)).toBeUndefined();
  });

  it("loads the same weights", () =>
    withCheckpoint(async (checkpoint) => {
      const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
      const ahead = new ReadAhead(checkpoint);
      ahead.begin(model.blockTensors(1).map(({ name }) => name));
      await ahead.arrived();
      scope(() => {
        const expected = loadBlock(checkpoint, model, 1);
        const actual = loadBlock(checkpoint, model, 1, "cpu", ahead);
        for (const [key, tensor] of Object.entries(expected)) {
          expect(actual[key]?.read(), key).toEqual(tensor.read());
        }
      });
      expect(ahead.take(model.blockTensors(1)[0]?.name ?? "")).toBeUndefined();
    }));
});
