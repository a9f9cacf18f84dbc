// Kills quantizations at random moments with SIGKILL, starts them again, and compares what they write
// with what an undisturbed run writes, byte for byte. The long version of test/faults.kill.test.ts:
//
//   node scripts/kill-test.mjs [kills] [seed] [-- options of quantize]
//
// A quarter of the kills, and at least five, come after a block has been stored; every third run is
// killed a second time while it goes on.
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { createInterface } from "node:readline";

const ROOT = path.join(import.meta.dirname, "..");
const COMMAND = path.join(ROOT, "dist", "bin", "aq-native.js");
const FIXTURES = path.join(ROOT, "test", "fixtures");
const SMALL = "--wbits 4 --abits 4 --nsamples 4 --seqlen 128 --epochs 10".split(" ");

const argv = process.argv.slice(2);
const split = argv.indexOf("--");
const [kills = "20", seed = "1"] = split < 0 ? argv : argv.slice(0, split);
const options = [
  ...["--model", path.join(FIXTURES, "llama-gqa-4m")],
  ...["--calib", path.join(FIXTURES, "books-test-head.txt")],
  ...(split < 0 ? SMALL : argv.slice(split + 1)),
];

let state = Number(seed) >>> 0;
/** Uniform in [0, 1): mulberry32. */
function random() {
  state = (state + 0x6d2b79f5) | 0;
  let z = Math.imul(state ^ (state >>> 15), state | 1);
  z = (z + Math.imul(z ^ (z >>> 7), z | 61)) ^ z;
  return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
}

/** Runs to the end, or until `ms` after the first event for which `from` holds. */
function run(out, kill) {
  const started = performance.now();
  const child = spawn(process.execPath, [COMMAND, "quantize", ...options, "--out", out, "--json"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let where = "before the first event";
  let timer;
  const arm = () => {
    if (kill && timer === undefined) timer = setTimeout(() => child.kill("SIGKILL"), kill.ms);
  };
  if (kill && !kill.from) arm();
  createInterface({ input: child.stdout }).on("line", (line) => {
    let event;
    try {
      event = JSON.parse(line);
    } catch {
      return;
    }
    const phase = event.phase ?? event.stage ?? event.which ?? "";
    where = [event.event, phase, event.block === undefined ? "" : `block ${event.block + 1}`]
      .filter((word) => word !== "")
      .join(" ");
    if (kill?.from?.(event)) arm();
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      resolve({ code, killed: signal === "SIGKILL", where, ms: performance.now() - started });
    });
  });
}

/** Files that a run computes; job.json and the reports tell of seconds. */
function contents(dir) {
  const files = fs
    .readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(dir, path.join(entry.parentPath, entry.name)))
    .filter((file) => !/^aq[/\\](job\.json|report\.(json|html))$/.test(file))
    .sort();
  return new Map(files.map((file) => [file, fs.readFileSync(path.join(dir, file))]));
}

function firstDifference(dir, expected) {
  const found = contents(dir);
  for (const name of new Set([...found.keys(), ...expected.keys()])) {
    const [a, b] = [found.get(name), expected.get(name)];
    if (!a || !b || !a.equals(b)) return name;
  }
  return null;
}

function storedBlocks(out) {
  try {
    return JSON.parse(fs.readFileSync(path.join(out, "aq", "job.json"), "utf8")).finished.length;
  } catch {
    return 0;
  }
}

const temp = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-kill-"));
let failures = 0;
let afterBlock = 0;
try {
  const whole = path.join(temp, "whole");
  const reference = await run(whole);
  if (reference.code !== 0) throw new Error(`the undisturbed run ended with ${reference.code}`);
  const expected = contents(whole);
  console.log(`undisturbed: ${(reference.ms / 1000).toFixed(1)} s, ${expected.size} files`);

  const count = Number(kills);
  const late = Math.max(5, Math.ceil(count / 4));
  let runs = 0;
  for (let i = 0; i < count; runs++) {
    const out = path.join(temp, `run-${runs}`);
    const ms = random() * reference.ms;
    const from = i < late ? (event) => event.event === "block" : undefined;
    const first = await run(out, { ms: from ? 0.6 * ms : ms, from });
    if (!first.killed) {
      // It was done before its moment came; another one takes its place.
      fs.rmSync(out, { recursive: true, force: true });
      continue;
    }
    i++;
    const stored = storedBlocks(out);
    if (stored > 0) afterBlock++;
    let line = `killed after ${first.ms.toFixed(0).padStart(5)} ms, ${first.where}, ${stored} stored`;
    if (i % 3 === 0) {
      const second = await run(out, { ms: random() * reference.ms });
      line += `; then ${second.killed ? "killed" : "ended"} in ${second.where}`;
    }
    const last = await run(out);
    const difference = last.code === 0 ? firstDifference(out, expected) : `exit ${last.code}`;
    if (difference !== null) failures++;
    console.log(
      `${String(i).padStart(3)}  ${line}: ${difference === null ? "same bytes" : `DIFFERENT (${difference})`}`,
    );
    fs.rmSync(out, { recursive: true, force: true });
  }
  console.log(`${count} kills, ${afterBlock} of them after a stored block, ${failures} failures`);
  if (afterBlock < Math.min(5, count)) {
    console.log("too few kills came after a stored block; take another seed");
    failures++;
  }
} finally {
  fs.rmSync(temp, { recursive: true, force: true });
}
process.exitCode = failures > 0 ? 1 : 0;
