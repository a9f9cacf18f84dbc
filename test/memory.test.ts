// Large checkpoints need little memory: a folder of 2 GB is inspected, and a block of it loaded, by a
// process that stays below 300 MB. The weights are a hole in the file and take no room on the disk.
import { execFile } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { llama } from "../lib/models/llama.ts";
import { packageRoot } from "../lib/util/package.ts";
import { rawSafetensors } from "./helpers/safetensors-file.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
const MB = 1e6;
const LIMIT = 300 * MB;
const CONFIG = {
  model_type: "llama",
  hidden_size: 1536,
  intermediate_size: 4096,
  num_attention_heads: 12,
  num_key_value_heads: 4,
  num_hidden_layers: 41,
  vocab_size: 32000,
  max_position_embeddings: 2048,
  dtype: "float16",
};

/** Writes config.json and a header for all weights in float16; their bytes are a hole. */
function writeLarge(dir: string): number {
  const model = llama.open(CONFIG, () => true);
  const blocks = Array.from({ length: model.shape.blocks }, (_, i) => model.blockTensors(i));
  const header: Record<string, object> = {};
  let end = 0;
  for (const { name, shape } of [...model.outerTensors(), ...blocks.flat()]) {
    const begin = end;
    end += 2 * shape.reduce((product, n) => product * n, 1);
    header[name] = { dtype: "F16", shape, data_offsets: [begin, end] };
  }
  const file = path.join(dir, "model.safetensors");
  const start = rawSafetensors(header);
  fs.writeFileSync(path.join(dir, "config.json"), JSON.stringify(CONFIG));
  fs.writeFileSync(file, start);
  fs.truncateSync(file, start.length + end);
  return end;
}

/** What the child does with the compiled package: inspect, then load the first block. */
const CHILD = `
const [root, model] = process.argv.slice(1);
const load = (file) => import(new URL(file, root));
const { inspect } = await load("lib/index.js");
const { openCheckpoint } = await load("lib/checkpoint/folder.js");
const { openModel } = await load("lib/models/registry.js");
const { loadBlock } = await load("lib/models/load.js");
const { readFileSync } = await import("node:fs");
const peak = () => 1024 * /VmHWM:\\s*(\\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))[1];

const { parameters, bytes } = inspect({ model });
const inspected = peak();
const checkpoint = openCheckpoint(model);
const family = openModel(checkpoint.config, (name) => checkpoint.has(name));
const block = loadBlock(checkpoint, family, 0);
const held = Object.values(block).reduce((sum, { size }) => sum + 4 * size, 0);
console.log(JSON.stringify({ parameters, bytes, held, inspected, loaded: peak() }));
`;

interface Report {
  readonly parameters: number;
  readonly bytes: number;
  /** Bytes of the block's weights. */
  readonly held: number;
  /** Peak of the process after inspecting, and after loading. */
  readonly inspected: number;
  readonly loaded: number;
}

const noProc = fs.existsSync("/proc/self/status") ? undefined : "there is no /proc to measure with";
if (noProc) console.log(`skipped: ${noProc}`);

describe.skipIf(noProc)("a checkpoint of 2 GB", () => {
  it("is inspected and its first block loaded below 300 MB", async () => {
    const entry = path.join(packageRoot(), "dist", "lib", "index.js");
    if (!fs.existsSync(entry)) throw new Error(`${entry} is missing; run "npm run compile" first`);
    const dir = tempFolder();
    const bytes = writeLarge(dir);
    expect(bytes).toBeGreaterThan(2000 * MB);
    expect(fs.statSync(path.join(dir, "model.safetensors")).blocks * 512).toBeLessThan(MB);

    const dist = pathToFileURL(`${path.join(packageRoot(), "dist")}/`).href;
    const script = ["--input-type=module", "-e", CHILD, dist, dir];
    const { stdout } = await promisify(execFile)(process.execPath, script);
    const report = JSON.parse(stdout) as Report;
    console.log(
      `inspect: ${Math.round(report.inspected / MB)} MB, a block of ` +
        `${Math.round(report.held / MB)} MB loaded: ${Math.round(report.loaded / MB)} MB`,
    );
    expect(report.bytes).toBe(bytes);
    expect(report.parameters).toBe(bytes / 2);
    expect(report.held).toBeGreaterThan(90 * MB);
    expect(report.inspected).toBeLessThan(150 * MB);
    expect(report.loaded).toBeLessThan(LIMIT);
  });
});
