// A run that is stopped or that fails leaves no tensor behind, no half-written checkpoint, and a
// folder that the next run can take over.
import * as fs from "node:fs";
import * as path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { openCheckpoint } from "../lib/checkpoint/folder.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import type { QuantizeEvent } from "../lib/types.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { firstBlocks } from "./helpers/fixture.ts";
import { filesBelow, readJson, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();

let live = 0;
beforeEach(() => {
  live = liveTensors();
});

/** Moments of a run of two blocks. */
const MOMENTS: Readonly<Record<string, (event: QuantizeEvent) => boolean>> = {
  "the first measurement": (e) => e.event === "eval" && e.which === "before" && e.window === 2,
  statistics: (e) => e.event === "phase" && e.block === 1 && e.phase === "statistics",
  "a step": (e) => e.event === "step" && e.block === 1 && e.step === 4,
  "the last step": (e) => e.event === "step" && e.block === 1 && e.step === 6,
  propagation: (e) => e.event === "phase" && e.block === 0 && e.phase === "propagate",
  "the last block": (e) => e.event === "block" && e.block === 1,
  "the last measurement": (e) => e.event === "eval" && e.which === "after",
};

describe("a whole run", () => {
  it("disposes every tensor that it made", async () => {
    const out = tempFolder();
    await smallRun({ model: firstBlocks(tempFolder(), 2), out, wbits: 4, abits: 4 });
    expect(liveTensors()).toBe(live);
  });
});

describe("a run that is stopped", () => {
  it.each(Object.entries(MOMENTS))(
    "in %s ends with AQ_STOPPED and nothing left",
    async (name, is) => {
      const [model, out] = [firstBlocks(tempFolder(), 2), tempFolder()];
      const controller = new AbortController();
      let after = 0;
      const onEvent = (event: QuantizeEvent): void => {
        if (controller.signal.aborted) after++;
        if (is(event)) controller.abort();
      };
      const hooks = { onEvent, signal: controller.signal };
      await expectAqRejection(smallRun({ model, out, abits: 4 }, hooks), "AQ_STOPPED", "stopped");
      expect(liveTensors()).toBe(live);
      // It stops at the next step or window; one more event may belong to what was under way.
      expect(after).toBeLessThanOrEqual(1);
      expect(filesBelow(out).filter((file) => file.includes("staging"))).toEqual([]);
      const complete = name === "the last measurement";
      expect(fs.existsSync(path.join(out, "config.json"))).toBe(complete);
      expect(readJson(out, "aq", "job.json")["status"]).toBe("running");
      if (complete) openCheckpoint(out).close();
      else expectAqError(() => openCheckpoint(out), "AQ_FILE", "config.json");
    },
  );

  it("before it begins does no work", async () => {
    const signal = AbortSignal.abort();
    const run = smallRun({ model: firstBlocks(tempFolder(), 1), out: tempFolder() }, { signal });
    await expectAqRejection(run, "AQ_STOPPED");
    expect(liveTensors()).toBe(live);
  });

  it("is gone on with by the next one, or taken over with overwrite", async () => {
    const [model, out] = [firstBlocks(tempFolder(), 1), tempFolder()];
    const controller = new AbortController();
    const onEvent = (event: QuantizeEvent): void => {
      if (event.event === "step") controller.abort();
    };
    const stopped = smallRun({ model, out }, { onEvent, signal: controller.signal });
    await expectAqRejection(stopped, "AQ_STOPPED", "block 0", "epoch 1");
    const other = smallRun({ model, out, seed: 3 });
    await expectAqRejection(other, "AQ_ARG", out, "seed was 0 and is now 3", "overwrite");
    const { result } = await smallRun({ model, out, overwrite: true });
    expect(readJson(out, "aq", "job.json")).toMatchObject({
      status: "done",
      result: { pplAfter: result.pplAfter },
    });
    expect(liveTensors()).toBe(live);
  });
});

describe("a run that fails", () => {
  it.each(Object.entries(MOMENTS))(
    "in %s passes the error on and leaves nothing",
    async (_, is) => {
      const onEvent = (event: QuantizeEvent): void => {
        if (is(event)) throw new RangeError("from the listener");
      };
      const model = firstBlocks(tempFolder(), 2);
      const run = smallRun({ model, out: tempFolder(), abits: 4 }, { onEvent });
      await expect(run).rejects.toThrow(new RangeError("from the listener"));
      expect(liveTensors()).toBe(live);
    },
  );

  it("in the middle of a step leaves nothing", async () => {
    const watch = (): void => {
      throw new RangeError("from the watcher");
    };
    const run = smallRun({ model: firstBlocks(tempFolder(), 1), out: tempFolder() }, { watch });
    await expect(run).rejects.toThrow("from the watcher");
    expect(liveTensors()).toBe(live);
  });
});
