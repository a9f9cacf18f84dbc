/** Maps of all layers: a cell for every linear of every block, the darker the larger its error. */

import type { BlockReport, LayerError } from "../types.ts";
import { significant } from "../util/format.ts";
import { element, type Markup } from "./markup.ts";
import { figure, WIDTH } from "./plot.ts";
import { countTicks } from "./scale.ts";

const NAMES = 54;
const RIGHT = 12;
const ROW = 24;
const AXIS = 40;
/** Narrowest cell that its number fits into. */
const LABELLED = 36;
/** From this share of the largest error on, a cell is so strong that its number needs the other ink. */
const STRONG = 0.58;

const MAPS: readonly {
  readonly heading: string;
  readonly reading: string;
  readonly of: (error: LayerError) => number | null;
}[] = [
  {
    heading: "Error by weights",
    reading:
      "Relative change of each layer's output when its weights alone are quantized, in percent.",
    of: ({ weight }) => weight,
  },
  {
    heading: "Error by activations",
    reading:
      "The same when its input alone is quantized. Both maps have one scale; empty cells are as they were.",
    of: ({ activation }) => activation,
  },
];

/** A map of each part that there is. */
export function layerMaps(blocks: readonly BlockReport[]): Markup[] {
  const linears = [...new Set(blocks.flatMap(({ layers = {} }) => Object.keys(layers)))];
  const parts = MAPS.map((map) => ({
    ...map,
    values: linears.map((linear) =>
      blocks.map(({ layers }) => {
        const error = layers?.[linear];
        const value = error ? map.of(error) : null;
        return value !== null && Number.isFinite(value) ? value : null;
      }),
    ),
  })).filter(({ values }) => values.flat().some((value) => value !== null));
  const largest = Math.max(0, ...parts.flatMap(({ values }) => values.flat()).map((v) => v ?? 0));
  return parts.map(({ heading, reading, values }) =>
    figure(heading, reading, map(heading, linears, values, largest), legend(largest)),
  );
}

function map(
  heading: string,
  linears: readonly string[],
  values: readonly (readonly (number | null)[])[],
  largest: number,
): Markup {
  const columns = values[0]?.length ?? 0;
  const width = (WIDTH - NAMES - RIGHT) / columns;
  const bottom = linears.length * ROW;
  const cells = values.flatMap((row, i) =>
    row.map((value, j) => {
      const box = { x: NAMES + j * width, y: i * ROW, width, height: ROW };
      return cell(`block ${j + 1}, ${linears[i]}`, value, largest, box);
    }),
  );
  const names = linears.map((name, i) =>
    element(
      "text",
      { class: "name", x: NAMES - 8, y: i * ROW + ROW / 2 + 4, "text-anchor": "end" },
      name,
    ),
  );
  const ticks = countTicks(columns).map((n) =>
    element(
      "text",
      { class: "tick", x: NAMES + (n - 0.5) * width, y: bottom + 16, "text-anchor": "middle" },
      String(n),
    ),
  );
  const title = element(
    "text",
    { class: "tick", x: (NAMES + WIDTH - RIGHT) / 2, y: bottom + 34, "text-anchor": "middle" },
    "block",
  );
  const attributes = {
    class: "plot",
    viewBox: `0 0 ${WIDTH} ${bottom + AXIS}`,
    role: "img",
    "aria-label": heading,
  };
  return element("svg", attributes, names, cells, ticks, title);
}

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

function cell(where: string, value: number | null, largest: number, box: Box): Markup {
  const gap = Math.min(1, box.width / 8);
  const place = {
    x: box.x + gap,
    y: box.y + gap,
    width: box.width - 2 * gap,
    height: box.height - 2 * gap,
    rx: Math.min(2, box.width / 6),
  };
  if (value === null) {
    return element(
      "rect",
      { class: "untouched", ...place },
      element("title", {}, `${where}: as it was`),
    );
  }
  const share = largest > 0 ? value / largest : 0;
  const style = `fill:color-mix(in oklab,var(--hot) ${Math.round(100 * share)}%,var(--cool))`;
  const number = percentOf(value);
  const label =
    box.width >= LABELLED
      ? element(
          "text",
          {
            class: share >= STRONG ? "onhot" : "oncool",
            x: box.x + box.width / 2,
            y: box.y + box.height / 2 + 4,
            "text-anchor": "middle",
          },
          number,
        )
      : null;
  return element(
    "g",
    {},
    element("title", {}, `${where}: ${number} %`),
    element("rect", { style, ...place }),
    label,
  );
}

function legend(largest: number): Markup {
  const ramp = element("i", { class: "ramp heat" });
  return element("p", { class: "legend" }, "0 %", ramp, `${percentOf(largest)} %`);
}

const percentOf = (value: number): string => significant(100 * value, value < 0.1 ? 2 : 3);
