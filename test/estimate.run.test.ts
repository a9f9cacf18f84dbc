// What estimate says of a run: counts that are exact, sizes that are near, and refusals that are the
// run's own. Its seconds are compared with a run by hand (docs/report.md): a loaded test machine
// would make that a coin toss.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { main } from "../lib/cli/main.ts";
import { type EstimateOptions, estimate } from "../lib/estimate.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { fakeIo } from "./helpers/fake-io.ts";
import { BOOKS, TRAINED } from "./helpers/fixture.ts";
import { filesBelow, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const SMALL: EstimateOptions = {
  model: TRAINED,
  calib: BOOKS,
  nsamples: 3,
  seqlen: 64,
  epochs: 2,
  device: "cpu",
};

function sum(parts: Readonly<Record<string, number>>): number {
  return Object.values(parts).reduce((a, b) => a + b, 0);
}

describe("estimate", () => {
  it("counts what a run does, and its parts add up", async () => {
    const live = liveTensors();
    const result = estimate({ ...SMALL, wbits: 4, abits: 4 });
    expect(liveTensors()).toBe(live);
    expect(result).toMatchObject({ family: "llama", blocks: 4, windows: 3, seqlen: 64 });
    expect(result.freeDiskBytes).toBeNull();
    expect(sum(result.phaseSeconds)).toBeCloseTo(result.seconds, 9);
    expect(sum(result.memoryParts)).toBe(result.memoryBytes);
    expect(sum(result.diskParts)).toBe(result.diskBytes);
    for (const seconds of Object.values(result.measured)) expect(seconds).toBeGreaterThan(0);

    const out = tempFolder();
    const { events, notes } = await smallRun({ out, wbits: 4, abits: 4 });
    expect(events.filter(({ event }) => event === "step")).toHaveLength(result.steps);
    expect(result.notes).toEqual(notes.slice(0, result.notes.length));
    const written = filesBelow(out).reduce(
      (n, file) => n + fs.statSync(path.join(out, file)).size,
      0,
    );
    expect(result.diskBytes / written).toBeGreaterThan(0.7);
    expect(result.diskBytes / written).toBeLessThan(1.3);
  });

  it("grows with what is asked for", () => {
    const base = estimate({ ...SMALL, wbits: 4 });
    const more = estimate({ ...SMALL, wbits: 4, epochs: 40, nsamples: 24 });
    expect(more.steps).toBe(base.steps * 20 * 8);
    expect(more.seconds).toBeGreaterThan(5 * base.seconds);
    expect(more.memoryBytes).toBeGreaterThan(base.memoryBytes);
    const rounded = estimate({ ...SMALL, recipe: "rtn" });
    expect(rounded.steps).toBe(0);
    expect(rounded.phaseSeconds["affine"]).toBeUndefined();
    expect(rounded.memoryBytes).toBeLessThan(base.memoryBytes);
  });

  it("counts the steps of batches, and the activations of their windows", () => {
    const [one, two, all] = [1, 2, 100].map((batch) => estimate({ ...SMALL, abits: 4, batch }));
    expect([one?.steps, two?.steps, all?.steps]).toEqual([4 * 2 * 3, 4 * 2 * 2, 4 * 2]);
    expect(one?.measured.step).toBe(one?.measured.windowStep);
    expect(all?.measured.step).toBeGreaterThan(all?.measured.windowStep as number);
    expect(all?.memoryBytes).toBeGreaterThanOrEqual(one?.memoryBytes as number);
  });

  it("moves what exceeds --stream-memory from memory to disk", () => {
    const whole = estimate({ ...SMALL, nsamples: 64 });
    const bounded = estimate({ ...SMALL, nsamples: 64, streamMemory: 1e6 });
    expect(bounded.memoryBytes).toBeLessThan(whole.memoryBytes);
    expect(bounded.diskParts["spilled streams"]).toBeGreaterThan(0);
    expect(whole.diskParts["spilled streams"]).toBe(0);
  });

  it("knows the bits of every scheme, and what is kept", () => {
    const of = (options: Partial<EstimateOptions>) => estimate({ ...SMALL, epochs: 1, ...options });
    const nvfp4 = of({ scheme: "nvfp4" });
    expect(nvfp4.scheme).toBe("NVFP4");
    expect(nvfp4.bitsPerWeight).toBeCloseTo(4.5, 3);
    expect(of({ scheme: "MXFP4A16" })).toMatchObject({ scheme: "MXFP4A16", bitsPerWeight: 4.25 });
    const some = of({ scheme: "NVFP4", keep: ["layers.0.*", "*.o_proj"] });
    expect(some.bitsPerWeight).toBeGreaterThan(7);
    expect(some.diskBytes).toBeGreaterThan(nvfp4.diskBytes);
    expect(some.notes.join()).toContain("10 of 28 linears stay as stored");
  });

  it("warns of a run that does not fit, and writes nothing", () => {
    const out = path.join(tempFolder(), "not", "there");
    const result = estimate({ ...SMALL, out, epochs: 1 });
    expect(result.freeDiskBytes).toBeGreaterThan(0);
    expect(fs.existsSync(out)).toBe(false);
    expect(result.notes.join()).not.toContain("the run needs about");
  });

  it("refuses what the run would refuse", () => {
    expectAqError(() => estimate({ ...SMALL, wbits: 1 }), "AQ_ARG", "wbits");
    expectAqError(() => estimate({ ...SMALL, keep: ["up"] }), "AQ_ARG", "--keep up");
    expectAqError(() => estimate({ ...SMALL, seqlen: 4096 }), "AQ_ARG", "seqlen 4096");
    expectAqError(() => estimate({ ...SMALL, model: "/no/such" }), "AQ_FILE", "/no/such");
  });
});

describe("the commands", () => {
  const line = ["--model", TRAINED, "--calib", BOOKS, "--nsamples", "2", "--seqlen", "32"];
  const load = () => import("../lib/index.ts");

  it("estimate and quantize --dry-run print the same lines", async () => {
    const out = path.join(tempFolder(), "o");
    const [first, second] = [fakeIo(), fakeIo()];
    expect(await main(["estimate", ...line], first, load)).toBe(0);
    expect(await main(["quantize", ...line, "--out", out, "--dry-run"], second, load)).toBe(0);
    const names = (text: string): string[] =>
      [...text.matchAll(/^(\w+) /gm)].map(([, n = ""]) => n);
    expect(names(first.stdout.text)).toEqual(["run", "weights", "time", "memory", "disk", "step"]);
    expect(names(second.stdout.text)).toEqual(names(first.stdout.text));
    expect(fs.existsSync(out)).toBe(false);
  });

  it("estimate --json is one object", async () => {
    const io = fakeIo();
    expect(await main(["estimate", ...line, "--json"], io, load)).toBe(0);
    expect(JSON.parse(io.stdout.text)).toMatchObject({ event: "estimate", windows: 2 });
  });
});
