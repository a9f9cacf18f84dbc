/** The tables of a report. */

import type { BlockReport } from "../types.ts";
import { byteSize, duration, grouped, percent, significant } from "../util/format.ts";
import type { RankedLayer } from "./layers.ts";
import { element, type Markup } from "./markup.ts";
import type { BitsReport, LinearBits, RunReport } from "./types.ts";

/** Layers that are listed. */
const WORST = 8;

/** One row a block. */
export function blockTable(blocks: readonly BlockReport[]): Markup {
  const heads = [
    "block",
    "first loss",
    "last loss",
    "stream error",
    "equivalence",
    "after the cast",
    "margin",
    "skipped",
    "time",
    "fallback",
  ];
  const rows = blocks.map((b) => [
    String(b.block + 1),
    orDash(b.lossFirst, significant),
    orDash(b.lossLast, significant),
    percent(b.streamError),
    orDash(b.equivalence, (x) => x.toExponential(1)),
    orDash(b.equivalenceStored, (x) => x.toExponential(1)),
    orDash(b.dominanceMargin, (x) => x.toFixed(3)),
    String(b.skippedSteps),
    duration(b.seconds),
    b.fallback ?? "none",
  ]);
  return table(heads, rows);
}

/** What every linear costs, what stays in full precision, and both together. */
export function bitsTable(bits: BitsReport): Markup {
  const heads = ["tensor", "bits per weight", "weights", "codes", "scales", "zeros"];
  const row = ({ linear, weights, codeBits, scaleBits, zeroBits, bitsPerWeight }: LinearBits) => [
    linear,
    bitsPerWeight.toFixed(3),
    grouped(weights),
    bytes(codeBits),
    bytes(scaleBits),
    bytes(zeroBits),
  ];
  const kept = (name: string, parameters: number, count: number): string[] => [
    name,
    (count / parameters).toFixed(3),
    grouped(parameters),
    bytes(count),
    "",
    "",
  ];
  const total = [row(bits.total)];
  if (bits.runtime.length + bits.kept.length > 0) {
    const left = bits.kept.reduce((sum, { parameters }) => sum + parameters, 0);
    total.push(...bits.kept.map((m) => kept(`${m.name}, not quantized`, m.parameters, m.bits)));
    total.push(...bits.runtime.map((m) => kept(`${m.name}, at run time`, m.parameters, m.bits)));
    total.push([
      bits.runtime.length > 0 ? "linears and run-time matrices" : "linears, quantized and not",
      bits.bitsPerWeight.toFixed(3),
      grouped(bits.total.weights + left),
      "",
      "",
      "",
    ]);
  }
  const rest = bits.rest.map((r) => kept(`${r.name}, kept as stored`, r.parameters, r.bits));
  return element(
    "div",
    {},
    table(heads, [...bits.linears.map(row), ...rest], total),
    element(
      "p",
      { class: "soft", style: "margin-top:8px" },
      `All tensors together: ${bits.bitsPerParameter.toFixed(3)} bits per parameter.`,
    ),
  );
}

/** The layers that suffer most. */
export function layerTable(ranked: readonly RankedLayer[], bits: BitsReport): Markup {
  const heads = ["layer", "by weights", "by activations", "together", "leaving it costs"];
  const layers = ranked.map(({ linear }) => linear);
  const rows = ranked
    .slice(0, WORST)
    .map(({ linear, name, weight, activation, both }) => [
      name,
      percent(weight),
      orDash(activation, percent),
      percent(both),
      costOf(linear, layers.filter((each) => each === linear).length, bits),
    ]);
  return table(heads, rows);
}

/** Bits per weight of the model more, where a linear of one block is stored in 16 bits. */
function costOf(linear: string, blocks: number, { linears, total, kept }: BitsReport): string {
  const row = linears.find((each) => each.linear === linear);
  if (!row) return "–";
  const all = total.weights + kept.reduce((sum, { parameters }) => sum + parameters, 0);
  return `${(((16 - row.bitsPerWeight) * row.weights) / blocks / all).toFixed(3)} bits per weight`;
}

function table(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  last: readonly (readonly string[])[] = [],
): Markup {
  const line = (cells: readonly string[]): Markup =>
    element(
      "tr",
      {},
      cells.map((cell) => element("td", {}, cell)),
    );
  return element(
    "div",
    { class: "card" },
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          heads.map((head) => element("th", {}, head)),
        ),
      ),
      element("tbody", {}, rows.map(line)),
      last.length > 0 ? element("tfoot", {}, last.map(line)) : null,
    ),
  );
}

/** Settings, machine and sizes. */
export function factsList({ settings, machine, model }: RunReport): Markup {
  const all: [string, unknown][] = [
    ...Object.entries(settings),
    ["hidden", model.hidden],
    [
      "heads",
      model.kvHeads === model.heads
        ? model.heads
        : `${model.heads}, ${model.kvHeads} for keys and values`,
    ],
    ["head size", model.headDim],
    ["mlp", model.mlp],
    ["vocabulary", model.vocabulary],
    ["stored as", model.dtype],
    ["device", machine.device],
    ["system", machine.system],
    ["Node.js", machine.node],
  ];
  const rows = all.map(([name, value]) =>
    element(
      "div",
      {},
      element("dt", {}, name),
      element("dd", {}, value === null ? "none" : String(value)),
    ),
  );
  return element("dl", { class: "card facts" }, rows);
}

const bytes = (bits: number): string => byteSize(Math.ceil(bits / 8));

function orDash(value: number | null, show: (value: number) => string): string {
  return value === null ? "–" : show(value);
}
