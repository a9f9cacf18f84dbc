/** The words for the events of a run. Blocks, epochs, steps and windows count from 0 in events, from 1 here. */
import type { BlockReport, QuantizeEvent, RunStage } from "../types.ts";
import { bar, duration, percent, perplexity, plural, significant } from "./format.ts";
import type { Segment } from "./screen.ts";

type Event<N extends QuantizeEvent["event"]> = Extract<QuantizeEvent, { event: N }>;

const BAR_CELLS = 16;
const PHASES: Readonly<Record<Event<"phase">["phase"], string>> = {
  replay: "passing through a stored block",
  statistics: "taking statistics",
  affine: "learning transforms and clipping",
  fold: "folding and checking",
  round: "learning to round",
  gptq: "rounding with error feedback",
  propagate: "propagating",
  write: "writing",
};
const STAGES: Readonly<Record<RunStage, string>> = {
  rotate: "rotating the weights",
  polish: "polishing all blocks",
  export: "writing the checkpoint",
};
const FALLBACKS: Readonly<Record<NonNullable<BlockReport["fallback"]>, string>> = {
  "half-rate": "trained at half the rate",
  "quarter-rate": "trained at a quarter of the rate",
  nearest: "learned rounding failed: rounded to nearest",
  rtn: "training failed: rounded to nearest",
};
/** A folded block that differs by more than this from the original is worth a warning. */
const EQUIVALENCE_LIMIT = 1e-5;

export function startLine(start: Event<"start">): Segment[] {
  return [
    { text: start.model, tone: "strong" },
    {
      text:
        `: ${start.family}, ${plural(start.blocks, "block")}, ${start.scheme}, ` +
        `recipe ${start.recipe}, ${plural(start.windows, "window")} of ${start.seqlen} tokens, ` +
        (start.device.startsWith("cuda") ? `device ${start.device}` : `cpu, ${start.device}`),
    },
  ];
}

export function phaseStatus(event: Event<"phase">, blocks: number): Segment[] {
  return [
    { text: place("block", event.block, blocks), tone: "strong" },
    { text: `  ${PHASES[event.phase]}` },
  ];
}

/** What an earlier session left to this one. */
export function resumeLine({ blocksDone, blocks, finished }: Event<"resume">): Segment[] {
  if (finished) return [{ text: "this run is finished already; --overwrite starts it anew" }];
  if (blocksDone === blocks) return [{ text: "going on with a run: all blocks are stored" }];
  return [
    { text: `going on with a run: ${plural(blocksDone, "block")} of ${blocks} stored already` },
  ];
}

/** How much of the calibration text the model has written. */
export function writingStatus({ tokens, of, secondsLeft }: Event<"writing">): Segment[] {
  const segments: Segment[] = [
    { text: "writing text", tone: "strong" },
    { text: "  " },
    { text: bar(tokens / of, BAR_CELLS), tone: "dim" },
    { text: `  ${percent(tokens / of)} of ${plural(of, "token")}` },
  ];
  if (secondsLeft !== null) {
    segments.push({ text: `  ${duration(secondsLeft)} left`, tone: "dim" });
  }
  return segments;
}

export function stageStatus({ stage }: Event<"stage">): Segment[] {
  return [{ text: STAGES[stage], tone: "strong" }];
}

/** Block, epoch, a bar over the whole run, loss and time left. */
export function stepStatus(event: Event<"step"> | Event<"epoch">): Segment[] {
  const withinEpoch = event.event === "step" ? (event.step + 1) / event.steps : 1;
  const withinBlock = (event.epoch + withinEpoch) / event.epochs;
  const done = (event.block + withinBlock) / event.blocks;
  const segments: Segment[] = [
    { text: place("block", event.block, event.blocks), tone: "strong" },
    { text: `  ${place("epoch", event.epoch, event.epochs)}  ` },
    { text: bar(done, BAR_CELLS), tone: "dim" },
    { text: `  loss ${significant(event.loss)}` },
  ];
  if (event.secondsLeft !== null) {
    segments.push({ text: `  ${duration(event.secondsLeft)} left`, tone: "dim" });
  }
  return segments;
}

/** Epoch, a bar over all of them, loss or what the windows held back say, and time left. */
export function polishStatus(event: Event<"polish">): Segment[] {
  const { epoch, epochs, step, steps, loss, divergence, secondsLeft } = event;
  const name = { text: "polish", tone: "strong" } as const;
  if (epoch < 0) return [name, { text: `  divergence ${significant(divergence ?? Number.NaN)}` }];
  const segments: Segment[] = [
    name,
    { text: `  ${place("epoch", epoch, epochs)}  ` },
    { text: bar(step / steps, BAR_CELLS), tone: "dim" },
  ];
  if (loss !== null) segments.push({ text: `  loss ${significant(loss)}` });
  if (divergence !== null) segments.push({ text: `  held back ${significant(divergence)}` });
  if (secondsLeft !== null) {
    segments.push({ text: `  ${duration(secondsLeft)} left`, tone: "dim" });
  }
  return segments;
}

export function evalStatus(
  label: string,
  window: number,
  windows: number,
  ppl: number | null,
): Segment[] {
  const value = ppl === null ? "" : `  ${perplexity(ppl)}`;
  return [
    { text: label, tone: "strong" },
    { text: `  ${place("window", window, windows)}  ` },
    { text: bar((window + 1) / windows, BAR_CELLS), tone: "dim" },
    { text: value },
  ];
}

/** One finished block: what training did to the loss, and the proofs that it went well. */
export function blockLine(report: BlockReport, blocks: number): Segment[] {
  const segments: Segment[] = [{ text: place("block", report.block, blocks), tone: "strong" }];
  if (report.lossFirst !== null && report.lossLast !== null) {
    segments.push({
      text: `  loss ${significant(report.lossFirst)} -> ${significant(report.lossLast)}`,
    });
  }
  segments.push({ text: `  stream error ${percent(report.streamError)}` });
  if (report.equivalence !== null) {
    const text = `  equivalence ${report.equivalence.toExponential(1)}`;
    const isExact = report.equivalence <= EQUIVALENCE_LIMIT;
    segments.push(isExact ? { text } : { text, tone: "warn" });
  }
  if (report.dominanceMargin !== null) {
    segments.push({ text: `  margin ${report.dominanceMargin.toFixed(2)}` });
  }
  segments.push({ text: `  ${duration(report.seconds)}`, tone: "dim" });
  if (report.skippedSteps > 0) {
    segments.push({ text: `  ${plural(report.skippedSteps, "step")} skipped`, tone: "warn" });
  }
  if (report.fallback !== null) {
    segments.push({ text: `  ${FALLBACKS[report.fallback]}`, tone: "warn" });
  }
  return segments;
}

function place(noun: string, index: number, count: number): string {
  const digits = String(count).length;
  return `${noun} ${String(Math.min(index + 1, count)).padStart(digits)}/${count}`;
}
