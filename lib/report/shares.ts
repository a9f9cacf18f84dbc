/** Plots of how a whole splits into parts: one bar a part, its name and size beside it. */

import { byteSize, duration, percent } from "../util/format.ts";
import { element, type Markup } from "./markup.ts";
import { figure, WIDTH } from "./plot.ts";
import type { BitsReport } from "./types.ts";

const ROW = 26;
const NAMES = 106;
const VALUES = 118;

interface Part {
  readonly name: string;
  readonly size: number;
}

/** Where the time went. */
export function timeChart(phaseSeconds: Readonly<Record<string, number>>): Markup | null {
  const parts = Object.entries(phaseSeconds).map(([name, size]) => ({ name, size }));
  return shares("Time", "Seconds of each phase, blocks added up.", parts, duration);
}

/** Where the bits of the output are. */
export function bitsChart({ total, kept, runtime, rest }: BitsReport): Markup | null {
  const parts = [
    { name: "codes", size: total.codeBits },
    { name: "scales", size: total.scaleBits },
    { name: "zeros", size: total.zeroBits },
    { name: "not quantized", size: kept.reduce((sum, { bits }) => sum + bits, 0) },
    ...[...runtime, ...rest].map(({ name, bits }) => ({
      name: name.replace(/,.*/, ""),
      size: bits,
    })),
  ];
  const label = (bits: number): string => byteSize(Math.ceil(bits / 8));
  return shares(
    "Size",
    "Codes packed to their bits, everything else as it is stored.",
    parts,
    label,
  );
}

function shares(
  heading: string,
  reading: string,
  all: readonly Part[],
  label: (size: number) => string,
): Markup | null {
  const parts = all.filter(({ size }) => size > 0);
  const total = parts.reduce((sum, { size }) => sum + size, 0);
  if (total === 0) return null;
  const longest = Math.max(...parts.map(({ size }) => size));
  const bars = parts.map(({ name, size }, i) => {
    const y = i * ROW + 2;
    const width = Math.max(1.5, ((WIDTH - NAMES - VALUES) * size) / longest);
    return [
      element("text", { class: "name", x: NAMES - 8, y: y + 16, "text-anchor": "end" }, name),
      element("rect", { class: "bar", x: NAMES, y: y + 3, width, height: ROW - 9, rx: 3 }),
      element(
        "text",
        { class: "tick", x: NAMES + width + 7, y: y + 16 },
        `${label(size)}, ${percent(size / total)}`,
      ),
    ];
  });
  const attributes = {
    class: "plot",
    viewBox: `0 0 ${WIDTH} ${parts.length * ROW + 4}`,
    role: "img",
    "aria-label": heading,
  };
  return figure(heading, reading, element("svg", attributes, bars));
}
