/** Schemes by the names that servers and other tools have for them. */

import { AqError } from "../errors.ts";
import { nearest } from "../util/nearest.ts";
import { checkScheme, FLOAT4_GROUPS, float4Scheme, type QuantScheme } from "./scheme.ts";

/** In the order in which they are told to people. */
export const SCHEME_NAMES = [
  "NVFP4",
  "NVFP4A16",
  "MXFP4",
  "MXFP4A16",
  "W4A16",
  "W3A16",
  "W2A16",
  "W4A4",
  "W8A8",
] as const;
export type SchemeName = (typeof SCHEME_NAMES)[number];

/** The bits, and what the name says beyond them. */
type Preset = Pick<QuantScheme, "wbits" | "abits"> &
  Partial<Pick<QuantScheme, "numbers" | "symmetric">>;

const PRESETS: Readonly<Record<SchemeName, Preset>> = {
  NVFP4: float4Scheme("nvfp4", 4),
  NVFP4A16: float4Scheme("nvfp4", 16),
  MXFP4: float4Scheme("mxfp4", 4),
  MXFP4A16: float4Scheme("mxfp4", 16),
  W4A16: { wbits: 4, abits: 16 },
  W3A16: { wbits: 3, abits: 16 },
  W2A16: { wbits: 2, abits: 16 },
  W4A4: { wbits: 4, abits: 4 },
  // Integer products with 8-bit tokens are served with weights symmetric about zero alone.
  W8A8: { wbits: 8, abits: 8, symmetric: true },
};

/** What the options of a run say about its scheme. */
export interface SchemeOptions {
  readonly scheme?: string | undefined;
  readonly wbits?: number | undefined;
  readonly abits?: number | undefined;
  readonly groupSize?: number | undefined;
  readonly symmetric?: boolean | undefined;
}

/**
 * The scheme that options ask for, by a name, by numbers, or by a name with numbers beside it. A name of
 * integers leaves group size and symmetry open; one of 4-bit floats says all of it.
 *
 * Throws: AQ_ARG for an unknown name with the nearest, and for numbers that contradict the name.
 */
export function schemeOf(options: SchemeOptions): QuantScheme {
  const { groupSize, symmetric } = options;
  const integers = {
    wbits: options.wbits ?? 4,
    abits: options.abits ?? 16,
    groupSize: groupSize ?? 0,
    symmetric: symmetric ?? false,
  };
  if (options.scheme === undefined) return checkScheme(integers);
  const name = presetName(options.scheme);
  const preset = PRESETS[name];
  const { wbits, abits, numbers } = preset;
  const fixed = numbers
    ? { wbits, abits, groupSize: FLOAT4_GROUPS[numbers], symmetric: true }
    : { wbits, abits };
  for (const [key, value] of Object.entries(fixed)) {
    const asked = options[key as keyof typeof integers];
    if (asked !== undefined && asked !== value) throw contradiction(name, key, value, options);
  }
  if (numbers) return float4Scheme(numbers, abits === 16 ? 16 : 4);
  const refined = { ...integers, wbits, abits, symmetric: symmetric ?? preset.symmetric ?? false };
  return checkScheme(refined);
}

/** The preset of a name, in whichever case it is written. Throws: AQ_ARG with the nearest. */
export function presetName(asked: string): SchemeName {
  const found = SCHEME_NAMES.find((name) => name === asked.toUpperCase());
  if (found) return found;
  const near = nearest(asked, SCHEME_NAMES);
  throw new AqError(
    "AQ_ARG",
    `there is no scheme ${JSON.stringify(asked)}; schemes: ${SCHEME_NAMES.join(", ")}${near ? `; did you mean ${near}?` : ""}`,
  );
}

/** What the fields are called on the command line, and what a name fixes them at, in words. */
const FIXED: Readonly<Record<string, readonly [string, (value: unknown) => string]>> = {
  wbits: ["--wbits", (value) => `${value}-bit weights`],
  abits: [
    "--abits",
    (value) => (value === 16 ? "activations as they are" : `${value}-bit activations`),
  ],
  groupSize: ["--group-size", (value) => `groups of ${value}`],
  symmetric: ["--symmetric", () => "weights symmetric about zero"],
};

function contradiction(
  name: SchemeName,
  key: string,
  value: unknown,
  options: SchemeOptions,
): AqError {
  const [option, say] = FIXED[key] as (typeof FIXED)[string];
  const asked = options[key as keyof SchemeOptions];
  const { wbits, abits, numbers } = PRESETS[name];
  const other = SCHEME_NAMES.find((each) => {
    const preset = PRESETS[each];
    const fits =
      preset.wbits === (options.wbits ?? wbits) && preset.abits === (options.abits ?? abits);
    return each !== name && preset.numbers === numbers && fits && key in { wbits, abits };
  });
  const instead = other ? `take --scheme ${other}` : "say all in numbers without --scheme";
  return new AqError(
    "AQ_ARG",
    `--scheme ${name} means ${say(value)}, and ${option} ${asked} contradicts it; leave ${option} out, or ${instead}`,
  );
}
