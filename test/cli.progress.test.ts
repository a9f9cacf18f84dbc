/** Progress on a terminal, in a pipe and as JSON lines, with a clock of our own. */
import { describe, expect, test } from "vitest";
import { evaluateProgress, quantizeProgress } from "../lib/cli/progress.ts";
import { Screen } from "../lib/cli/screen.ts";
import type { QuantizeEvent } from "../lib/types.ts";
import { type FakeIo, fakeIo, terminalLines } from "./helpers/fake-io.ts";

const START: QuantizeEvent = {
  event: "start",
  model: "tiny",
  family: "llama",
  blocks: 2,
  windows: 1,
  seqlen: 64,
  wbits: 4,
  abits: 4,
  scheme: "W4A4",
  recipe: "affine",
  threads: 2,
  device: "avx2, 2 threads",
};

function step(index: number, secondsLeft: number | null = null): QuantizeEvent {
  return {
    event: "step",
    block: 0,
    blocks: 2,
    epoch: 0,
    epochs: 2,
    step: index,
    steps: 100,
    loss: 0.0123456,
    secondsLeft,
  };
}

function block(fallback: "half-rate" | "rtn" | null): QuantizeEvent {
  return {
    event: "block",
    block: 0,
    blocks: 2,
    lossFirst: 0.03,
    lossLast: 0.01,
    losses: {},
    equivalence: 2e-7,
    equivalenceStored: 4e-4,
    dominanceMargin: 0.95,
    streamError: 0.05,
    skippedSteps: fallback ? 3 : 0,
    phaseSeconds: {},
    fallback,
    seconds: 75,
  };
}

function show(io: FakeIo, json: boolean, events: readonly QuantizeEvent[], gapMs: number): string {
  const progress = quantizeProgress(io, json);
  for (const event of events) {
    progress.event(event);
    io.advance(gapMs);
  }
  return json ? io.stdout.text : io.stderr.text;
}

describe("on a terminal", () => {
  test("the status is one line, redrawn in place, with block, epoch, bar, loss and time left", () => {
    const text = show(fakeIo({ columns: 100 }), false, [START, step(0), step(49, 83)], 200);
    expect(terminalLines(text)).toEqual([
      "tiny: llama, 2 blocks, W4A4, recipe affine, 1 window of 64 tokens, cpu, avx2, 2 threads",
      "block 1/2  epoch 1/2  ██░░░░░░░░░░░░░░  loss 0.01235  1m 23s left",
    ]);
  });

  test("it is drawn at most ten times a second", () => {
    const steps = Array.from({ length: 100 }, (_, i) => step(i));
    const text = show(fakeIo({ columns: 100 }), false, steps, 10);
    expect(text.split("\x1b[K")).toHaveLength(10 + 1);
  });

  test("a change of phase is shown at once", () => {
    const fold: QuantizeEvent = { event: "phase", block: 0, phase: "fold" };
    const text = show(fakeIo({ columns: 100 }), false, [START, step(0), fold], 0);
    expect(terminalLines(text).at(-1)).toBe("block 1/2  folding and checking");
  });

  test("it never reaches the last column, so that it cannot wrap", () => {
    const text = show(fakeIo({ columns: 20 }), false, [step(3, 10)], 0);
    expect(terminalLines(text)).toEqual(["block 1/2  epoch 1/"]);
  });

  test("a finished block stays, above the status, and leaves no trace of it", () => {
    const io = fakeIo({ columns: 120 });
    const text = show(io, false, [step(0), block(null), step(1)], 200);
    const lines = terminalLines(text);
    expect(lines).toHaveLength(2);
    expect(lines[0]).toBe(
      "block 1/2  loss 0.03000 -> 0.01000  stream error 5.0 %  equivalence 2.0e-7  margin 0.95  1m 15s",
    );
    expect(lines[1]).toMatch(/^block 1\/2 {2}epoch 1\/2/);
  });

  test("the end removes the status and the cursor is never hidden", () => {
    const io = fakeIo({ columns: 80 });
    const progress = quantizeProgress(io, false);
    progress.event(step(0));
    progress.end();
    progress.end();
    expect(terminalLines(io.stderr.text)).toEqual([""]);
    expect(io.stderr.text).not.toContain("\x1b[?25");
  });

  test("a fallback is yellow, unless NO_COLOR is set or the terminal is dumb", () => {
    const yellow = "\x1b[33m";
    expect(show(fakeIo({}), false, [block("rtn")], 0)).toContain(
      `${yellow}  training failed: rounded to nearest`,
    );
    for (const [name, value] of [
      ["NO_COLOR", "1"],
      ["TERM", "dumb"],
    ] as const) {
      const io = fakeIo({});
      io.env[name] = value;
      const text = show(io, false, [step(0), block("half-rate")], 200);
      expect(text).not.toContain("\x1b[3");
      expect(text).toContain("trained at half the rate");
    }
  });
});

describe("in a pipe", () => {
  test("there are plain lines only: one a block, and a sign of life every ten seconds", () => {
    const steps = Array.from({ length: 50 }, (_, i) => step(i));
    const text = show(fakeIo(), false, [START, ...steps, block("half-rate")], 500);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that there are none is the point.
    expect(text).not.toMatch(/[\r\x1b]/);
    const lines = text.trimEnd().split("\n");
    expect(lines).toHaveLength(4);
    expect(lines[1]).toMatch(/^block 1\/2 {2}epoch 1\/2 .* loss 0.01235$/);
    expect(lines[3]).toMatch(/3 steps skipped {2}trained at half the rate$/);
  });
});

describe("as JSON lines", () => {
  test("steps are thinned to one a second, everything else is kept, `done` is left to the command", () => {
    const steps = Array.from({ length: 30 }, (_, i) => step(i));
    const done: QuantizeEvent = {
      event: "done",
      out: "o",
      seconds: 1,
      pplBefore: 1,
      pplAfter: 1,
      blocks: [],
    };
    const text = show(fakeIo({}), true, [START, ...steps, block(null), done], 100);
    const events = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).event);
    expect(events).toEqual(["start", "step", "step", "step", "block"]);
  });

  test("an equivalence that was not measured is null", () => {
    const text = show(fakeIo(), true, [{ ...block(null), equivalence: null } as QuantizeEvent], 0);
    expect(JSON.parse(text).equivalence).toBeNull();
  });
});

test("eval shows the window and the perplexity so far", () => {
  const io = fakeIo({ columns: 60 });
  const progress = evaluateProgress(io, false);
  progress.event({ event: "window", window: 3, windows: 16, ppl: 40.123 });
  expect(terminalLines(io.stderr.text)).toEqual([
    "perplexity  window  4/16  ████░░░░░░░░░░░░  40.12",
  ]);
  progress.end();
  expect(terminalLines(io.stderr.text)).toEqual([""]);
});

test("a line printed without a status leaves no control characters", () => {
  const io = fakeIo({});
  new Screen(io.stderr, io).print([{ text: "hello" }]);
  expect(io.stderr.text).toBe("hello\n");
});
