// What a run leaves in aq/: report.json that agrees with the result, report.html beside it, and a
// command that repeats the run.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { flatten } from "../lib/report/build.ts";
import { repeatCommand } from "../lib/report/command.ts";
import { countTicks, linearScale, logScale, rangeScale } from "../lib/report/scale.ts";
import type { RunReport } from "../lib/report/types.ts";
import { writeReport } from "../lib/report/write.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { firstBlocks } from "./helpers/fixture.ts";
import { sampleReport } from "./helpers/sample-report.ts";
import { smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();

describe("the report of a run", () => {
  it("agrees with its result", async () => {
    const [model, out] = [firstBlocks(tempFolder(), 2), tempFolder()];
    const { result, notes } = await smallRun({ model, out, wbits: 4, abits: 4 });
    const file = path.join(out, "aq", "report.json");
    const report = JSON.parse(fs.readFileSync(file, "utf8")) as RunReport;
    expect(report.blocks).toEqual(result.blocks);
    expect(report.perplexity).toMatchObject({ before: result.pplBefore, after: result.pplAfter });
    expect(report).toMatchObject({ format: 1, scheme: "W4A4", recipe: "affine", notes });
    expect(report.settings).toMatchObject({ wbits: 4, abits: 4, nsamples: 3, seed: 0 });
    expect(report.command).toContain(`--model ${model} --out ${out}`);
    const phases = Object.values(report.phaseSeconds).reduce((a, b) => a + b, 0);
    expect(phases).toBeCloseTo(report.seconds, 4);
    for (const { block, layers = {} } of report.blocks) {
      expect(Object.keys(layers)).toEqual(["q", "k", "v", "o", "gate", "up", "down"]);
      for (const { name, weight, activation } of Object.values(layers)) {
        expect(name).toMatch(new RegExp(`^model\\.layers\\.${block}\\..*_proj$`));
        for (const error of [weight, activation as number]) {
          expect(error).toBeGreaterThan(0.01);
          expect(error).toBeLessThan(0.5);
        }
      }
    }
    for (const { losses, phaseSeconds, seconds, lossFirst, lossLast } of report.blocks) {
      const all = Object.values(losses).flat();
      expect([all[0], all.at(-1)]).toEqual([lossFirst, lossLast]);
      expect(Object.values(phaseSeconds).reduce((a, b) => a + b, 0)).toBeCloseTo(seconds, 4);
    }
    const html = fs.readFileSync(path.join(out, "aq", "report.html"), "utf8");
    expect(html).toContain("W4A4");
  });

  it("is two files, or the reason why not", () => {
    const dir = tempFolder();
    writeReport(dir, sampleReport());
    expect(fs.readdirSync(dir).sort()).toEqual(["report.html", "report.json"]);
    expectAqError(
      () => writeReport(path.join(dir, "gone"), sampleReport()),
      "AQ_FILE",
      "report.json",
    );
  });
});

describe("the command that repeats a run", () => {
  it("has every option that was given, in its spelling, and quotes what a shell would split", () => {
    const command = repeatCommand({
      model: "/my models/it's",
      out: "/out",
      wbits: 3,
      groupSize: 64,
      symmetric: true,
      augLoss: false,
      letLr: 5e-3,
      overwrite: true,
    });
    expect(command).toBe(
      "aq-native quantize --model '/my models/it'\\''s' --out /out --wbits 3 --group-size 64 " +
        "--symmetric --no-aug-loss --let-lr 0.005",
    );
  });

  it("has absolute paths", () => {
    expect(
      repeatCommand({ model: "m", out: "o", scheme: "NVFP4", keep: ["*.o_proj", "fc1"] }),
    ).toBe(
      `aq-native quantize --model ${path.resolve("m")} --out ${path.resolve("o")} --scheme NVFP4 --keep '*.o_proj' fc1`,
    );
    expect(repeatCommand({ model: "m", out: "o", calib: "c" })).toContain(
      `--calib ${path.resolve("c")}`,
    );
  });
});

describe("settings and axes", () => {
  it("flatten to leaves, named by their path only where two have one name", () => {
    expect(
      flatten({ a: { b: 1, c: null }, d: { b: true }, e: { name: "x" }, f: undefined }),
    ).toEqual({ "a.b": 1, c: null, "d.b": true, e: "x" });
    expect(flatten({ keep: [], others: ["a", "b*"] })).toEqual({ keep: null, others: "a b*" });
  });

  it.each([[[0]], [[1, 1, 1]], [[0.2, 0.9]], [[1e-9, 1e9]], [[]], [[Number.NaN, 3]]])(
    "hold all of %j",
    (values: number[]) => {
      for (const scale of [
        linearScale(values, String),
        rangeScale(values, String),
        logScale(values),
      ]) {
        expect(scale.ticks.length).toBeGreaterThanOrEqual(1);
        expect(scale.ticks.length).toBeLessThanOrEqual(12);
        for (const value of [...values, ...scale.ticks.map((tick) => tick.value)]) {
          if (!(value > 0)) continue;
          expect(scale.at(value)).toBeGreaterThanOrEqual(-1e-9);
          expect(scale.at(value)).toBeLessThanOrEqual(1 + 1e-9);
        }
      }
    },
  );

  it("count blocks with few labels", () => {
    expect(countTicks(4)).toEqual([1, 2, 3, 4]);
    expect(countTicks(80)).toEqual([1, 10, 20, 30, 40, 50, 60, 70, 80]);
  });
});
