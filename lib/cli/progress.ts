/**
 * The progress of a run, told to a person (Screen) or to a program (JsonLines). The `done` event is
 * not shown here: the command prints the result that the call returns, so that it always comes last.
 */
import type { EvaluateEvent, QuantizeEvent } from "../types.ts";
import {
  blockLine,
  evalStatus,
  phaseStatus,
  polishStatus,
  resumeLine,
  stageStatus,
  startLine,
  stepStatus,
  writingStatus,
} from "./describe.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import { Screen } from "./screen.ts";

export interface Progress<E> {
  event(event: E): void;
  /** Takes the status line away; nothing is shown afterwards. */
  end(): void;
}

export function quantizeProgress(io: Io, json: boolean): Progress<QuantizeEvent> {
  return json ? quantizeJson(io) : quantizeText(io);
}

export function evaluateProgress(io: Io, json: boolean): Progress<EvaluateEvent> {
  if (json) {
    const lines = new JsonLines(io.stdout, io);
    return { event: (event) => lines.writeSometimes(event), end: () => {} };
  }
  const screen = new Screen(io.stderr, io);
  return {
    event: ({ window, windows, ppl }) =>
      screen.status(evalStatus("perplexity", window, windows, ppl)),
    end: () => screen.clear(),
  };
}

function quantizeJson(io: Io): Progress<QuantizeEvent> {
  const lines = new JsonLines(io.stdout, io);
  return {
    event(event) {
      if (event.event === "done") return;
      const isStep =
        event.event === "step" ||
        event.event === "writing" ||
        (event.event === "polish" && event.divergence === null);
      if (isStep) lines.writeSometimes(event);
      else lines.write(event);
    },
    end() {},
  };
}

function quantizeText(io: Io): Progress<QuantizeEvent> {
  const screen = new Screen(io.stderr, io);
  let blocks = 0;
  return {
    event(event) {
      switch (event.event) {
        case "start":
          blocks = event.blocks;
          screen.print(startLine(event));
          break;
        case "note":
          screen.print([{ text: "note: ", tone: "strong" }, { text: event.text }]);
          break;
        case "resume":
          screen.print(resumeLine(event));
          break;
        case "writing":
          screen.status(writingStatus(event));
          break;
        case "stage":
          screen.status(stageStatus(event), true);
          break;
        case "phase":
          screen.status(phaseStatus(event, blocks), true);
          break;
        case "step":
        case "epoch":
          screen.status(stepStatus(event));
          break;
        case "polish":
          screen.status(polishStatus(event));
          break;
        case "block":
          screen.print(blockLine(event, event.blocks));
          break;
        case "eval": {
          const which = event.which === "before" ? "full precision" : "quantized";
          screen.status(evalStatus(`perplexity, ${which}`, event.window, event.windows, event.ppl));
          break;
        }
        case "format":
          screen.status([{ text: event.format, tone: "strong" }, { text: `  ${event.out}` }], true);
          break;
        case "done":
          break;
        default:
          event satisfies never;
      }
    },
    end: () => screen.clear(),
  };
}
