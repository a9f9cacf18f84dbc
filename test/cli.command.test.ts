/** The built command as a process: help, misuse, exit codes, and never a stack trace. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const COMMAND = join(ROOT, "dist", "bin", "aq-native.js");
const MISSING = join(tmpdir(), "aq-native-no-such-folder");

interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run(...args: string[]): Outcome {
  const { AQ_DEBUG: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [COMMAND, ...args], { encoding: "utf8", env });
  return { code: child.status, stdout: child.stdout, stderr: child.stderr };
}

/** One line, no stack, nothing on stdout. */
function expectOneSentence(outcome: Outcome): void {
  expect(outcome.stdout).toBe("");
  expect(outcome.stderr).toMatch(/^aq-native: [^\n]+\n$/);
  expect(outcome.stderr).not.toMatch(/\n\s+at /);
}

describe("help", () => {
  test("the program lists its commands and exit codes", () => {
    const { code, stdout } = run("--help");
    expect(code).toBe(0);
    for (const word of ["quantize", "eval", "inspect", "Exit codes"])
      expect(stdout).toContain(word);
  });

  test.each([
    ["quantize", ["--model", "--out", "--wbits", "--group-size", "--no-aug-loss", "--json"]],
    ["eval", ["--model", "--text", "--seqlen", "--windows", "--abits", "--json"]],
    ["inspect", ["--model", "--json"]],
  ])("%s shows its options and examples", (name, options) => {
    const { code, stdout, stderr } = run(name, "--help");
    expect(code).toBe(0);
    expect(stderr).toBe("");
    for (const option of options) expect(stdout).toContain(option);
    expect(stdout).toContain(`  aq-native ${name} --model`);
    expect(run("help", name).stdout).toBe(stdout);
  });

  test("no command at all is wrong use, and shows the help", () => {
    const { code, stderr } = run();
    expect(code).toBe(2);
    expect(stderr).toContain("Usage: aq-native");
  });

  test("--version is the package's", () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
    expect(run("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });
});

describe("wrong use exits with 2 and one sentence", () => {
  const io = ["--model", MISSING, "--out", `${MISSING}-out`];
  test.each<[string, string[], string]>([
    ["a misspelt command", ["quantise"], "Did you mean quantize?"],
    ["a misspelt command to help", ["help", "evl"], "Did you mean eval?"],
    ["a misspelt option", ["quantize", ...io, "--wbit", "4"], "Did you mean --wbits?"],
    ["a misspelt required option", ["quantize", "--modle", "x"], "Did you mean --model?"],
    ["one dash for two", ["quantize", ...io, "-wbits", "4"], "Did you mean --wbits?"],
    ["a misspelt option with =", ["inspect", "--modle=a/long/path"], "Did you mean --model?"],
    ["underscores", ["quantize", ...io, "--group_size", "64"], "Did you mean --group-size?"],
    ["a misspelt option of eval", ["eval", "--txt", "x"], "Did you mean --text?"],
    ["a missing required option", ["quantize", "--model", "x"], "'--out <dir>' not specified"],
    ["a missing value", ["quantize", ...io, "--wbits"], "'--wbits <n>' argument missing"],
    ["too few bits", ["quantize", ...io, "--wbits", "1"], "from 2 to 8"],
    ["half a bit", ["quantize", ...io, "--wbits", "4.5"], "from 2 to 8"],
    ["activation bits between", ["quantize", ...io, "--abits", "12"], "from 2 to 8, or 16"],
    ["bits that are no number", ["quantize", ...io, "--abits", "x"], "argument 'x' is invalid"],
    ["groups of nothing", ["quantize", ...io, "--group-size", "0"], "Leave the option out"],
    ["a rate that is no number", ["quantize", ...io, "--let-lr", "fast"], "from 0 to 1"],
    [
      "an unknown recipe",
      ["quantize", ...io, "--recipe", "foo"],
      "default, affine, round, lwc-only, rtn",
    ],
    ["a misspelt recipe", ["quantize", ...io, "--recipe", "defualt"], "Did you mean default?"],
    ["an unknown sampling", ["quantize", ...io, "--sampling", "all"], "sequential, random"],
    ["an unknown device", ["eval", "--model", "x", "--text", "y", "--device", "tpu"], "auto, cpu"],
    ["no threads", ["quantize", ...io, "--threads", "0"], "from 1 to"],
    ["a stray word", ["inspect", "extra", "--model", "x"], "too many arguments"],
  ])("%s", (_what, args, text) => {
    const outcome = run(...args);
    expect(outcome.code).toBe(2);
    expectOneSentence(outcome);
    expect(outcome.stderr).toContain(text);
    expect(outcome.stderr).toMatch(/See aq-native( \w+)? --help\.\n$/);
  });
});

describe("bad input exits with 1 and one sentence", () => {
  test.each([
    ["quantize", ["quantize", "--model", MISSING, "--out", `${MISSING}-out`]],
    ["eval", ["eval", "--model", MISSING, "--text", MISSING]],
    ["inspect", ["inspect", "--model", MISSING]],
  ])("%s of a folder that does not exist", (_name, args) => {
    const outcome = run(...args);
    expect(outcome.code).toBe(1);
    expectOneSentence(outcome);
    expect(outcome.stderr).toContain(MISSING);
  });
});
