/** Node.js, the operating system, the processor and its memory: what aq-native stands on. */

import { readFileSync } from "node:fs";
import * as os from "node:os";
import { byteSize, plural } from "../util/format.ts";
import type { DoctorCheck } from "./check.ts";

/** As in package.json's engines. */
const OLDEST_NODE = [20, 17] as const;

/** Features that kernels use, or that people ask about, in the spelling of the kernel's list. */
const FEATURES: ReadonlySet<string> = new Set(
  (
    "sse4_2 avx avx2 fma bmi2 f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 " +
    "avx_vnni amx_tile amx_bf16 amx_int8 asimd asimdhp asimddp i8mm bf16 sve sve2"
  ).split(" "),
);

export function checkNode(version: string = process.versions.node): DoctorCheck {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const isOld = major < OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor < OLDEST_NODE[1]);
  const needed = OLDEST_NODE.join(".");
  return {
    name: "Node.js",
    status: isOld ? "problem" : "ok",
    text: `v${version}, Node-API ${process.versions["napi"] ?? "unknown"}`,
    advice: isOld ? `Install Node.js ${needed} or later.` : null,
    facts: { version, needed, napi: Number(process.versions["napi"]), path: process.execPath },
  };
}

export function checkSystem(): DoctorCheck {
  const libc = findLibc();
  const known =
    process.platform === "linux" || process.platform === "darwin" || process.platform === "win32";
  return {
    name: "system",
    status: known ? "ok" : "note",
    text: `${os.type()} ${os.release()}, ${process.arch}${libc ? `, ${libc}` : ""}`,
    advice: known ? null : "The package has not been tried here; build the addon from source.",
    facts: { platform: process.platform, arch: process.arch, release: os.release(), libc },
  };
}

/** "glibc 2.36", "musl", or null where there is no choice of them. */
function findLibc(): string | null {
  if (process.platform !== "linux") return null;
  // The report would look up names of network interfaces, which can take seconds.
  const reporter = process.report as typeof process.report & { excludeNetwork?: boolean };
  const before = reporter.excludeNetwork ?? false;
  reporter.excludeNetwork = true;
  try {
    const { header } = reporter.getReport() as { header?: { glibcVersionRuntime?: string } };
    return header?.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : "musl";
  } finally {
    reporter.excludeNetwork = before;
  }
}

export function checkProcessor(): DoctorCheck {
  const cpus = os.cpus();
  const model = cpus[0]?.model.trim() || "a processor without a name";
  const features = cpuFeatures(readText("/proc/cpuinfo"));
  const listed = features.length > 0 ? `: ${features.join(" ")}` : "";
  return {
    name: "processor",
    status: "ok",
    text: `${model}, ${plural(cpus.length, "logical core")}${listed}`,
    advice: null,
    facts: { model, cores: cpus.length, available: os.availableParallelism(), features },
  };
}

/** The features of /proc/cpuinfo that matter here; none where there is no such file. */
export function cpuFeatures(cpuinfo: string): string[] {
  const line = /^(?:flags|Features)\s*:(.*)$/m.exec(cpuinfo)?.[1] ?? "";
  return line.split(/\s+/).filter((feature) => FEATURES.has(feature));
}

export function checkMemory(): DoctorCheck {
  const limit = process.constrainedMemory();
  const machine = os.totalmem();
  const total = limit !== undefined && limit > 0 && limit < machine ? limit : machine;
  const free = Math.min(process.availableMemory?.() ?? os.freemem(), total);
  const limited =
    total < machine ? ` (a limit of this container; the machine has ${byteSize(machine)})` : "";
  return {
    name: "memory",
    status: "ok",
    text: `${byteSize(total)}, ${byteSize(free)} available${limited}`,
    advice: null,
    facts: { totalBytes: total, availableBytes: free, machineBytes: machine },
  };
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
