/** The frame that all plots share: grid lines, ticks, titles, and places in it. */

import { type Child, element, type Markup } from "./markup.ts";
import type { Scale, Tick } from "./scale.ts";

/** User units of a plot; the page scales it to the width of its column. */
export const WIDTH = 420;
const HEIGHT = 240;
const LEFT = 54;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 44;

export interface FramedPlot {
  /** What the plot shows, for those who cannot see it. */
  readonly title: string;
  readonly xTitle: string;
  /** Positions 0..1 along the axis. */
  readonly xTicks: readonly { readonly at: number; readonly label: string }[];
  readonly y: Scale;
  /** Draws into the frame. */
  readonly body: (place: Place) => Child;
}

/** From 0..1 along both axes to user units. */
export interface Place {
  x(share: number): number;
  y(share: number): number;
  readonly width: number;
}

const PLACE: Place = {
  x: (share) => LEFT + share * (WIDTH - LEFT - RIGHT),
  y: (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM),
  width: WIDTH - LEFT - RIGHT,
};

export function framed({ title, xTitle, xTicks, y, body }: FramedPlot): Markup {
  return element(
    "svg",
    { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
    y.ticks.map((tick) => gridLine(tick, PLACE.y(y.at(tick.value)))),
    xTicks.map(({ at, label }) =>
      element(
        "text",
        { class: "tick", x: PLACE.x(at), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" },
        label,
      ),
    ),
    element(
      "text",
      { class: "tick", x: PLACE.x(0.5), y: HEIGHT - 6, "text-anchor": "middle" },
      xTitle,
    ),
    body(PLACE),
  );
}

function gridLine(tick: Tick, y: number): Markup[] {
  return [
    element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
    element("text", { class: "tick", x: LEFT - 7, y: y + 4, "text-anchor": "end" }, tick.label),
  ];
}

/** A figure: heading, a sentence that says how to read it, the plot, and what explains its colours. */
export function figure(heading: string, reading: string, ...content: readonly Child[]): Markup {
  return element(
    "figure",
    {},
    element("figcaption", {}, element("h3", {}, heading), element("p", {}, reading)),
    content,
  );
}

/** Colour of a block by its depth in the model, as a style of the property. */
export function depthColour(property: "stroke" | "fill" | "background", share: number): string {
  const percent = Math.round(100 * share);
  return `${property}:color-mix(in oklab,var(--deep) ${percent}%,var(--shallow))`;
}

/** A sample of colour before a name. */
export function swatch(style: string, name: string): Markup {
  return element("span", { class: "swatch" }, element("i", { style }), name);
}
