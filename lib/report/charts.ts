/** The plots of a report. Each returns null when there is nothing to plot. */

import type { BlockReport } from "../types.ts";
import { significant } from "../util/format.ts";
import { element, type Markup } from "./markup.ts";
import { depthColour, figure, framed, type Place, swatch } from "./plot.ts";
import { countTicks, linearScale, logScale, rangeScale, type Scale } from "./scale.ts";
import type { RunCurve } from "./types.ts";

/** Blocks that a legend can name one by one. */
const NAMED_BLOCKS = 8;
const EXACT = 1e-5;

/** Keeps the first and the last epoch off the edges, where labels of both axes would meet. */
const inset = (share: number): number => 0.025 + 0.95 * share;

const blockName = (block: number): string => `block ${block + 1}`;

/** Loss per epoch, one line a block, phases one after the other. */
export function lossChart(blocks: readonly BlockReport[]): Markup | null {
  const phases = new Map<string, number>();
  for (const { losses } of blocks) {
    for (const [phase, values] of Object.entries(losses)) {
      phases.set(phase, Math.max(phases.get(phase) ?? 0, values.length));
    }
  }
  const epochs = [...phases.values()].reduce((sum, n) => sum + n, 0);
  if (epochs === 0) return null;
  const relative = blocks.map(relativeLosses);
  const y = rangeScale(
    relative.flatMap((losses) => Object.values(losses).flat()),
    percentOf,
  );
  const at = (epoch: number): number => inset(epochs === 1 ? 0.5 : epoch / (epochs - 1));
  const starts = startsOf(phases);
  const lines = (place: Place): Markup[] =>
    blocks.flatMap((report, index) => {
      const style = depthColour("stroke", report.block / Math.max(1, blocks.length - 1));
      return Object.entries(relative[index] ?? {}).map(([phase, values]) => {
        const from = starts.get(phase) ?? 0;
        const points = values.map((value, i): [number, number] => [at(from + i), value]);
        const absolute = (report.losses[phase] ?? []).filter((value) => Number.isFinite(value));
        const [first, last] = [absolute[0], absolute.at(-1)].map((x) =>
          significant(x ?? Number.NaN),
        );
        const name = `${blockName(report.block)}, ${phase}: ${first} to ${last}`;
        return line(place, y, points, style, name);
      });
    });
  const plot = framed({
    title: "Mean loss of each epoch, by block",
    xTitle: [...phases.keys()].length > 1 ? [...phases.keys()].join(", then ") : "epoch",
    xTicks: countTicks(epochs).map((n) => ({ at: at(n - 1), label: String(n) })),
    y,
    body: (place) => [
      [...starts.values()]
        .filter((start) => start > 0)
        .map((start) => {
          const x = place.x(at(start - 0.5));
          return element("line", {
            class: "divider",
            x1: x,
            x2: x,
            y1: place.y(0),
            y2: place.y(1),
          });
        }),
      lines(place),
    ],
  });
  const reading =
    "Mean loss of each epoch, as a share of the block's first. Every line is a block.";
  return figure("Training loss", reading, plot, depthLegend(blocks.length));
}

/** Losses as shares of the block's first finite one. */
function relativeLosses({ losses }: BlockReport): Record<string, number[]> {
  const first = Object.values(losses)
    .flat()
    .find((value) => Number.isFinite(value) && value > 0);
  return Object.fromEntries(
    Object.entries(losses).map(([phase, values]) => [
      phase,
      values.map((value) => (Number.isFinite(value) ? value / (first ?? 1) : Number.NaN)),
    ]),
  );
}

const percentOf = (value: number): string => `${Number((100 * value).toPrecision(4))} %`;

function startsOf(phases: ReadonlyMap<string, number>): Map<string, number> {
  const starts = new Map<string, number>();
  let next = 0;
  for (const [phase, length] of phases) {
    starts.set(phase, next);
    next += length;
  }
  return starts;
}

/** A line that ends in a dot; values that cannot be drawn are left out. */
function line(
  place: Place,
  y: Scale,
  points: readonly (readonly [number, number])[],
  style: string,
  name: string,
): Markup {
  const drawn = points
    .filter(([, value]) => Number.isFinite(value))
    .map(([x, value]): [number, number] => [place.x(x), place.y(y.at(value))]);
  const path = drawn.map(([x, at], i) => `${i === 0 ? "M" : "L"}${x.toFixed(1)} ${at.toFixed(1)}`);
  const [cx, cy] = drawn.at(-1) ?? [0, 0];
  return element(
    "g",
    { class: "series" },
    element("title", {}, name),
    element("path", { d: path.join(""), style }),
    drawn.length > 0
      ? element("circle", { cx, cy, r: 2.5, style: style.replace("stroke", "fill") })
      : null,
  );
}

function depthLegend(blocks: number): Markup {
  if (blocks <= NAMED_BLOCKS) {
    const names = Array.from({ length: blocks }, (_, i) =>
      swatch(depthColour("background", i / Math.max(1, blocks - 1)), blockName(i)),
    );
    return element("p", { class: "legend" }, names);
  }
  return element(
    "p",
    { class: "legend" },
    "block 1",
    element("i", { class: "ramp" }),
    `block ${blocks}`,
  );
}

interface Bars {
  readonly heading: string;
  readonly reading: string;
  readonly label: (value: number) => string;
  readonly values: readonly (number | null)[];
}

function barChart({ heading, reading, label, values }: Bars): Markup | null {
  const known = values.filter((value) => value !== null && Number.isFinite(value)) as number[];
  if (known.length === 0) return null;
  const y = linearScale(known, label);
  const middle = (i: number): number => (i + 0.5) / values.length;
  const plot = framed({
    title: heading,
    xTitle: "block",
    xTicks: countTicks(values.length).map((n) => ({ at: middle(n - 1), label: String(n) })),
    y,
    body: (place) => {
      const width = Math.min(36, (0.72 * place.width) / values.length);
      return values.map((value, i) => {
        if (value === null || !Number.isFinite(value)) return null;
        const top = place.y(y.at(Math.max(0, value)));
        const box = { x: place.x(middle(i)) - width / 2, y: top, width };
        return element(
          "rect",
          {
            class: "bar",
            ...box,
            height: Math.max(1, place.y(0) - top),
            rx: Math.min(3, width / 4),
          },
          element("title", {}, `${blockName(i)}: ${label(value)}`),
        );
      });
    },
  });
  return figure(heading, reading, plot);
}

/** How far the quantized stream is from the full-precision one after each block. */
export function streamChart(blocks: readonly BlockReport[]): Markup | null {
  return barChart({
    heading: "Error of the stream",
    reading: "Distance of the quantized from the full-precision hidden states after each block.",
    label: (value) =>
      `${significant(100 * value, value > 0 && value < 0.1 ? 2 : 3).replace(/\.0+$/, "")} %`,
    values: blocks.map(({ streamError }) => streamError),
  });
}

/** Smallest margin of strict diagonal dominance. */
export function marginChart(blocks: readonly BlockReport[]): Markup | null {
  return barChart({
    heading: "Dominance margin",
    reading: "Smallest over the rows of all matrices; above 0 every matrix is invertible.",
    label: (value) => String(Number(value.toPrecision(3))),
    values: blocks.map(({ dominanceMargin }) => dominanceMargin),
  });
}

/** Equivalence of the folded blocks, before and after the cast to the stored dtype. */
export function equivalenceChart(blocks: readonly BlockReport[]): Markup | null {
  const series = [
    { name: "folded, float32", mark: "exact", of: (b: BlockReport) => b.equivalence },
    {
      name: "cast to the stored dtype",
      mark: "stored",
      of: (b: BlockReport) => b.equivalenceStored,
    },
  ];
  const values = series.flatMap(({ of }) => blocks.map(of)).filter((v) => v !== null);
  if (values.length === 0) return null;
  const y = logScale([...values, EXACT]);
  const middle = (i: number): number => (i + 0.5) / blocks.length;
  const plot = framed({
    title: "Equivalence of each block",
    xTitle: "block",
    xTicks: countTicks(blocks.length).map((n) => ({ at: middle(n - 1), label: String(n) })),
    y,
    body: (place) => [
      element("line", {
        class: "limit",
        x1: place.x(0),
        x2: place.x(1),
        y1: place.y(y.at(EXACT)),
        y2: place.y(y.at(EXACT)),
      }),
      series.map(({ name, mark, of }) =>
        blocks.map((block, i) => {
          const value = of(block);
          if (value === null || !(value > 0)) return null;
          return element(
            "circle",
            {
              class: mark,
              cx: place.x(middle(i)),
              cy: place.y(y.at(value)),
              r: blocks.length > 40 ? 3 : 5,
            },
            element("title", {}, `${blockName(i)}, ${name}: ${value.toExponential(1)}`),
          );
        }),
      ),
    ],
  });
  const reading =
    "Relative change of the block's output by folding, quantizers off. Dashed: the limit of 1e-5.";
  const legend = series.map(({ name, mark }) =>
    element("span", { class: "swatch" }, element("i", { class: mark }), name),
  );
  return figure("Equivalence", reading, plot, element("p", { class: "legend" }, legend));
}

/** Curves of phases that train all blocks at once. */
export function runCurve({ title, unit, first, values }: RunCurve): Markup | null {
  if (values.length === 0) return null;
  const y = linearScale(values, (value) => String(Number(value.toPrecision(3))));
  const at = (i: number): number => inset(values.length === 1 ? 0.5 : i / (values.length - 1));
  const points = values.map((value, i): [number, number] => [at(i), value]);
  const plot = framed({
    title,
    xTitle: "epoch",
    xTicks: countTicks(values.length).map((n) => ({ at: at(n - 1), label: String(n - 1 + first) })),
    y,
    body: (place) => line(place, y, points, "stroke:var(--accent)", title),
  });
  return figure(title, unit, plot);
}
