// The built command, killed or interrupted at any moment, goes on when it is started again, and writes
// what it would have written in one go.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { QuantizeEvent } from "../lib/types.ts";
import {
  expectSentence,
  interrupt,
  type Outcome,
  quantizeArgs,
  runCommand,
} from "./helpers/command.ts";
import { BOOKS, firstBlocks } from "./helpers/fixture.ts";
import { expectSameResult, filesBelow, readJson } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
let temp = "";
let model = "";
let whole = "";

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  [model, whole] = ["model", "whole"].map((name) => path.join(temp, name)) as [string, string];
  fs.mkdirSync(model);
  firstBlocks(model, 2);
  expect(runCommand(...args(whole)).code).toBe(0);
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

function args(out: string): string[] {
  return quantizeArgs({ model, calib: BOOKS, out });
}

/** Starts the run again and asserts that it ends as if nothing had happened. */
function expectRecovery(out: string): Outcome {
  const outcome = runCommand(...args(out));
  expect({ code: outcome.code, stderr: outcome.stderr }).toMatchObject({ code: 0 });
  expectSameResult(out, whole);
  expect(readJson(out, "aq", "job.json")).toMatchObject({ status: "done" });
  return outcome;
}

type Moment = (event: QuantizeEvent) => boolean;

const inPhase = (name: string): Moment => {
  return (e) => e.event === "phase" && e.block === 1 && e.phase === name;
};
const inStage = (name: string): Moment => {
  return (e) => e.event === "stage" && e.stage === name;
};

describe("kill -9", () => {
  it.each<[string, Moment]>([
    ["start", (e) => e.event === "start"],
    ["measure the source", (e) => e.event === "eval" && e.which === "before"],
    ["rotate", inStage("rotate")],
    ...["statistics", "affine", "fold", "round", "propagate", "write"].map(
      (name): [string, Moment] => [name, inPhase(name)],
    ),
    ["store", (e) => e.event === "block" && e.block === 1],
    ["export", inStage("export")],
    ["measure the result", (e) => e.event === "eval" && e.which === "after"],
  ])("in: %s", async (_, moment) => {
    const out = tempFolder();
    const { signal, events } = await interrupt(args(out), "SIGKILL", moment);
    expect(signal).toBe("SIGKILL");
    expect(events.some(moment)).toBe(true);
    expectRecovery(out);
  });

  it("again and again, in what the session before left", async () => {
    const out = tempFolder();
    const moments = [inPhase("affine"), inPhase("replay"), inPhase("round"), inStage("export")];
    const first: Moment = (e) => e.event === "phase" && e.block === 0 && e.phase === "write";
    for (const moment of [first, ...moments]) {
      // A moment that does not come any more lets the run end.
      const { signal } = await interrupt(args(out), "SIGKILL", moment);
      if (signal === null) break;
    }
    expectRecovery(out);
  });

  it("after some milliseconds, before there are events", async () => {
    const out = path.join(tempFolder(), "out");
    for (const ms of [60, 120, 180, 240]) await interrupt(args(out), "SIGKILL", ms);
    expectRecovery(out);
  });
});

describe("Ctrl-C", () => {
  it.each(["SIGINT", "SIGTERM"] as const)(
    "as %s exits with 75 and is gone on with",
    async (name) => {
      const out = tempFolder();
      const interrupted = await interrupt(args(out), name, inPhase("affine"));
      expect(interrupted.signal).toBeNull();
      expectSentence(interrupted, 75, /1 of 2 blocks are stored/, /the same command goes on/);
      expect(filesBelow(out).filter((file) => /tmp-|staging|aq\/lock|\.stream/.test(file))).toEqual(
        [],
      );
      const shown = runCommand("inspect", "--model", out);
      expect(shown.stdout).toMatch(/blocks +1 of 2 stored/);
      expect(shown.stdout).toMatch(/left +block 2, write the checkpoint, measure it/);
      expect(expectRecovery(out).stderr).toContain("going on with a run: 1 block of 2 stored");
      const again = runCommand(...args(out));
      expect(again).toMatchObject({ code: 0, stderr: expect.stringContaining("finished already") });
      expect(again.stdout).toContain("perplexity");
    },
  );
});
