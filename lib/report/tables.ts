/** The tables of a report. */

import type { BlockReport } from "../types.ts";
import { byteSize, duration, grouped, percent, significant } from "../util/format.ts";
import { element, type Markup } from "./markup.ts";
import type { BitsReport, LinearBits, RunReport } from "./types.ts";

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
  if (bits.runtime.length > 0) {
    total.push(...bits.runtime.map((m) => kept(`${m.name}, at run time`, m.parameters, m.bits)));
    total.push([
      "linears and run-time matrices",
      bits.bitsPerWeight.toFixed(3),
      grouped(bits.total.weights),
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
