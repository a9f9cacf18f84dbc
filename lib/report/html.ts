/** report.html: one file without scripts or links, which any browser shows without a network. */

import * as path from "node:path";
import type { BlockReport } from "../types.ts";
import { duration, grouped, percent, perplexity, plural } from "../util/format.ts";
import { shellWord } from "../util/shell.ts";
import { equivalenceChart, lossChart, marginChart, runCurve, streamChart } from "./charts.ts";
import { layerMaps } from "./heat.ts";
import { keepHint, outstanding, rankLayers } from "./layers.ts";
import { type Child, element, type Markup } from "./markup.ts";
import { bitsChart, timeChart } from "./shares.ts";
import { STYLE } from "./style.ts";
import { bitsTable, blockTable, factsList, layerTable } from "./tables.ts";
import type { RunReport } from "./types.ts";

/** A folded block that differs by more than this from the original is worth a warning. */
const EXACT = 1e-5;

const FALLBACKS: Readonly<Record<NonNullable<BlockReport["fallback"]>, string>> = {
  "half-rate": "trained at half the rate",
  "quarter-rate": "trained at a quarter of the rate",
  nearest: "learned rounding failed: rounded to nearest",
  rtn: "could not be trained and was rounded to nearest",
};

/** The page. */
export function renderHtml(report: RunReport): string {
  const name = path.basename(path.resolve(report.model.path));
  const title = `${name}, ${report.scheme}`;
  const charts = [
    lossChart(report.blocks),
    streamChart(report.blocks),
    equivalenceChart(report.blocks),
    marginChart(report.blocks),
    ...report.curves.map(runCurve),
    timeChart(report.phaseSeconds),
    bitsChart(report.bits),
  ];
  const page = element(
    "html",
    { lang: "en" },
    element(
      "head",
      {},
      element("meta", { charset: "utf-8" }),
      element("meta", { name: "viewport", content: "width=device-width,initial-scale=1" }),
      element("meta", {
        "http-equiv": "Content-Security-Policy",
        content: "default-src 'none'; style-src 'unsafe-inline'",
      }),
      element("title", {}, `${title}: aq-native report`),
      element("style", {}, { html: STYLE }),
    ),
    element(
      "body",
      {},
      element(
        "main",
        {},
        element("h1", {}, title),
        element("p", { class: "soft" }, subtitle(report)),
        tiles(report),
        alerts(report),
        section("How it went", element("div", { class: "plots" }, charts)),
        layers(report),
        section("Blocks", blockTable(report.blocks)),
        section("Bits", bitsTable(report.bits)),
        section(
          "To repeat it",
          element("div", { class: "card" }, element("pre", {}, report.command)),
        ),
        section("Settings", factsList(report)),
        report.notes.length > 0
          ? section(
              "Notes",
              element(
                "ul",
                { class: "notes" },
                report.notes.map((n) => element("li", {}, n)),
              ),
            )
          : null,
      ),
    ),
  );
  return `<!doctype html>\n${page.html}\n`;
}

function section(heading: string, ...content: readonly Child[]): Markup {
  return element("section", {}, element("h2", {}, heading), content);
}

/** Which layers to leave as they are; nothing where no block says what its layers lose. */
function layers({ blocks, bits }: RunReport): Markup | null {
  const ranked = rankLayers(blocks);
  if (ranked.length === 0) return null;
  const patterns = keepHint(ranked);
  const count = outstanding(ranked).length;
  const hint =
    patterns.length > 0
      ? [
          `${plural(count, "layer")} ${count === 1 ? "stands" : "stand"} out. To leave ${count === 1 ? "it" : "the worst"} at 16 bits: `,
          element("code", {}, `--keep ${patterns.map(shellWord).join(" ")}`),
        ]
      : [
          "None stands out. To leave one at 16 bits all the same: ",
          element("code", {}, `--keep ${shellWord(ranked[0]?.name ?? "")}`),
        ];
  return section(
    "Layers",
    element("div", { class: "plots" }, layerMaps(blocks)),
    element(
      "p",
      { class: "soft hint" },
      hint,
      ". Servers run q, k, v and gate, up as one: there, name all that belong together.",
    ),
    layerTable(ranked, bits),
  );
}

function subtitle({ model, recipe, calibration, finished, writtenBy }: RunReport): string {
  return (
    `${model.family}, ${plural(model.blocks, "block")}, ${grouped(model.parameters)} parameters. ` +
    `Recipe ${recipe}, ${plural(calibration.windows, "window")} of ${calibration.seqlen} tokens ` +
    `from ${calibration.text}. ${writtenBy}, ${finished.slice(0, 16).replace("T", " ")} UTC.`
  );
}

function tiles(report: RunReport): Markup {
  const { before, after, windows } = report.perplexity;
  const rise = after / before - 1;
  const exact = report.blocks.flatMap(({ equivalence }) => equivalence ?? []);
  const margins = report.blocks.flatMap(({ dominanceMargin }) => dominanceMargin ?? []);
  return element(
    "div",
    { class: "tiles" },
    tile("perplexity before", perplexity(before), `over ${plural(windows, "window")}`),
    tile("perplexity after", perplexity(after), `${rise < 0 ? "" : "+"}${percent(rise)}`),
    tile("bits per weight", report.bits.bitsPerWeight.toFixed(3), "codes, scales and zeros"),
    exact.length > 0
      ? tile("worst equivalence", Math.max(...exact).toExponential(1), "after folding, float32")
      : null,
    margins.length > 0
      ? tile("smallest margin", Math.min(...margins).toFixed(3), "of diagonal dominance")
      : null,
    tile("time", duration(report.seconds), plural(report.machine.threads, "thread")),
  );
}

function tile(what: string, value: string, more: string): Markup {
  return element(
    "div",
    { class: "tile" },
    element("span", {}, what),
    element("b", {}, value),
    element("span", {}, more),
  );
}

/** What a person has to know, in words; nothing when all went well. */
function alerts({ blocks }: RunReport): Markup | null {
  const lines = blocks.flatMap(({ block, fallback, skippedSteps, equivalence, equivalent }) => {
    const name = `Block ${block + 1}`;
    const said: string[] = [];
    if (fallback !== null) said.push(`${name} ${FALLBACKS[fallback]}.`);
    if (skippedSteps > 0)
      said.push(`${name}: ${plural(skippedSteps, "step")} skipped, not finite.`);
    if (equivalence !== null && !(equivalence <= EXACT)) {
      const why =
        equivalent === false
          ? "the recipe's transforms are not exact on this model"
          : "expected at most 1e-5";
      said.push(`${name} is not equivalent: ${equivalence.toExponential(1)}, ${why}.`);
    }
    return said;
  });
  if (lines.length === 0) return null;
  return element(
    "div",
    { class: "alert" },
    element("b", {}, "Worth a look"),
    element(
      "ul",
      {},
      lines.map((line) => element("li", {}, line)),
    ),
  );
}
