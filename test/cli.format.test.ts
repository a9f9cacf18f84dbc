/** Numbers for people, columns, and the nearest name. */
import { describe, expect, test } from "vitest";
import {
  bar,
  byteSize,
  duration,
  grouped,
  percent,
  perplexity,
  plural,
  significant,
  table,
} from "../lib/cli/format.ts";
import { editDistance, nearest } from "../lib/util/nearest.ts";

test.each([
  [0.04, "0.0 s"],
  [8.44, "8.4 s"],
  [9.96, "10 s"],
  [59.4, "59 s"],
  [59.6, "1m 00s"],
  [3599, "59m 59s"],
  [3600, "1h 00m"],
  [93784, "26h 03m"],
  [-1, "0.0 s"],
  [Number.NaN, "?"],
])("%f seconds are %s", (seconds, text) => {
  expect(duration(seconds)).toBe(text);
});

test("numbers keep the digits that carry meaning", () => {
  expect(significant(0.0123456)).toBe("0.01235");
  expect(significant(0.000123456)).toBe("1.235e-4");
  expect(significant(0)).toBe("0.000");
  expect(significant(Number.POSITIVE_INFINITY)).toBe("Infinity");
  expect(perplexity(39.8513)).toBe("39.85");
  expect(perplexity(123456789)).toBe("1.235e+8");
  expect(percent(0.0428)).toBe("4.3 %");
  expect(grouped(1234567)).toBe("1,234,567");
  expect(grouped(12)).toBe("12");
  expect(byteSize(8426496)).toBe("8.0 MiB");
  expect(byteSize(12)).toBe("12 B");
  expect(plural(1, "block")).toBe("1 block");
  expect(plural(0, "block")).toBe("0 blocks");
});

test("a bar stays within its cells", () => {
  expect(bar(0.5, 4)).toBe("██░░");
  expect(bar(-1, 4)).toBe("░░░░");
  expect(bar(2, 4)).toBe("████");
  expect(bar(Number.NaN, 4)).toBe("░░░░");
});

test("a table aligns its columns and ends lines at the last word", () => {
  expect(
    table(
      [
        ["name", "count"],
        ["a", "1"],
      ],
      [false, true],
    ),
  ).toEqual(["name  count", "a         1"]);
  expect(table([["wide name", ""], ["x"]])).toEqual(["wide name", "x"]);
});

describe("the nearest name", () => {
  const options = ["--wbits", "--abits", "--group-size", "--epochs", "--seed", "--out"];

  test.each([
    ["--wbit", "--wbits"],
    ["--wibts", "--wbits"],
    ["-wbits", "--wbits"],
    ["--group_size", "--group-size"],
    ["--groupsize", "--group-size"],
    ["--EPOCHS", "--epochs"],
    ["--epoch", "--epochs"],
  ])("of %s is %s", (word, found) => {
    expect(nearest(word, options)).toBe(found);
  });

  test("is nothing where nothing is near", () => {
    expect(nearest("--temperature", options)).toBeUndefined();
    expect(nearest("-x", options)).toBeUndefined();
  });

  test("counts a swap as one edit", () => {
    expect(editDistance("abcd", "acbd")).toBe(1);
    expect(editDistance("", "abc")).toBe(3);
    expect(editDistance("kitten", "sitting")).toBe(3);
  });
});
