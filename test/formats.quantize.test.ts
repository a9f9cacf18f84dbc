// quantize with formats: refused before any work, written when the run is done, gone with the run.
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { quantizeToFormats } from "../lib/run-formats.ts";
import type { QuantizeEvent, QuantizeOptions } from "../lib/types.ts";
import { expectAqRejection } from "./helpers/expect-error.ts";
import { firstBlocks, OPT, TRAINED } from "./helpers/fixture.ts";
import { filesBelow, SMALL } from "./helpers/small-run.ts";

let temp = "";
let source = "";

/** Without a group size: schemes by name bring their own. */
const NAMED = { ...SMALL, recipe: "rtn" } as const;
const RTN = { ...NAMED, groupSize: 64 } as const;

function quantized(options: Partial<QuantizeOptions> & { out: string }): Promise<unknown> {
  return quantizeToFormats({ ...RTN, model: source, ...options }, {});
}

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
  source = path.join(temp, "source");
  fs.mkdirSync(source);
  firstBlocks(source, 2);
});

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }));

describe("quantize with formats", () => {
  const out = (): string => path.join(temp, "formats");

  it("writes each into a folder of its name, and says so before it is done", async () => {
    const events: QuantizeEvent[] = [];
    const options = {
      ...RTN,
      model: source,
      out: out(),
      wbits: 4,
      format: ["awq", "hf", "aq"],
    } as const;
    const result = await quantizeToFormats(
      { ...options, target: "llama.cpp" },
      { onEvent: (event) => void events.push(event) },
    );
    expect(result.formats?.map((each) => [each.format, each.out])).toEqual([
      ["awq", path.join(out(), "awq")],
      ["aq", path.join(out(), "aq-packed")],
      ["gguf", path.join(out(), "gguf")],
    ]);
    expect(events.slice(-4).map(({ event }) => event)).toEqual([
      "format",
      "format",
      "format",
      "done",
    ]);
    expect(fs.existsSync(path.join(out(), "aq", "job.json"))).toBe(true);
    // The same command answers again, and writes what is missing.
    fs.rmSync(path.join(out(), "gguf"), { recursive: true });
    const again = await quantizeToFormats({ ...options, target: "llama.cpp" }, {});
    expect(again.formats).toHaveLength(3);
    expect(fs.existsSync(path.join(out(), "gguf", "model.gguf"))).toBe(true);
  });

  it("started anew leaves no format of the run that was overwritten", async () => {
    await quantized({ out: out(), wbits: 3, overwrite: true, format: ["gguf"] });
    expect(fs.readdirSync(out()).filter((name) => /^(aq|awq|aq-packed|gguf)$/.test(name))).toEqual([
      "aq",
      "gguf",
    ]);
  });

  it.each<[string, Partial<QuantizeOptions>, string[]]>([
    ["awq of 3 bits", { wbits: 3, format: ["awq"] }, ["4-bit weights"]],
    ["awq of NVFP4", { scheme: "NVFP4", format: ["awq"] }, ["NVFP4; write compressed-tensors"]],
    ["modelopt of MXFP4", { scheme: "MXFP4", format: ["modelopt"] }, ["NVFP4 alone"]],
    [
      "a server for a torn q, k, v",
      { target: "vllm", keep: ["layers.0.self_attn.k_proj"] },
      ["q, k, v as one linear"],
    ],
    ["gguf of OPT", { model: OPT, format: ["aq", "gguf"] }, ["no OPT"]],
    [
      "a server for learned W4A4",
      { abits: 4, recipe: "default", target: "vllm" },
      ["no server today", "nearest"],
    ],
  ])("refuses %s before it begins", async (_, options, parts) => {
    const place = path.join(temp, "never");
    const own = options.scheme === undefined ? RTN : NAMED;
    const refused = quantizeToFormats({ ...own, model: source, out: place, ...options }, {});
    await expectAqRejection(refused, "AQ_MODEL", ...parts);
    expect(fs.existsSync(place)).toBe(false);
  });

  it("writes 4-bit floats for the program that is named, and what it keeps as it is", async () => {
    const place = path.join(temp, "floats");
    const result = await quantizeToFormats(
      {
        ...{ ...NAMED, model: source, out: place, scheme: "NVFP4", target: "tensorrt-llm" },
        keep: ["layers.1.mlp.down_proj"],
        format: ["gguf-f16"],
      },
      {},
    );
    const formats = result.formats?.map(({ format, verified }) => [format, verified.linears]);
    expect(formats).toEqual([
      ["gguf-f16", 13],
      ["modelopt", 13],
    ]);
  });

  it("keeps the run when a format's place is taken by something else", async () => {
    const place = path.join(temp, "taken");
    fs.mkdirSync(path.join(place, "awq"), { recursive: true });
    fs.writeFileSync(path.join(place, "awq", "notes.txt"), "mine");
    const refused = quantized({ out: place, format: ["awq"], model: TRAINED });
    await expectAqRejection(refused, "AQ_ARG", "notes.txt");
    expect(filesBelow(place)).toEqual(["awq/notes.txt"]);
  });
});
