// What doctor says of machines that lack something: the reason, and what to do about it.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { main } from "../lib/cli/main.ts";
import { checkCpuAddon, checkCudaAddon, checkGpuDriver } from "../lib/doctor/addons.ts";
import { loadAdvice } from "../lib/doctor/advice.ts";
import { checkNode, cpuFeatures } from "../lib/doctor/machine.ts";
import { type DoctorResult, doctor } from "../lib/doctor.ts";
import { loadCuda } from "../lib/native/cuda.ts";
import { fakeIo } from "./helpers/fake-io.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();

describe("doctor on this machine", () => {
  it("finds all that the tests run on", () => {
    const { usable, checks } = doctor();
    expect(usable).toBe(true);
    const byName = new Map(checks.map((check) => [check.name, check]));
    for (const name of ["Node.js", "system", "processor", "memory", "CPU addon", "computing"]) {
      expect(byName.get(name), name).toMatchObject({ status: "ok", advice: null });
    }
    expect(byName.get("Node.js")?.facts["version"]).toBe(process.versions.node);
    expect(byName.get("computing")?.facts["simd"]).toMatch(/^(plain|avx2|avx512|neon)$/);
    expect(fs.existsSync(String(byName.get("CPU addon")?.facts["path"]))).toBe(true);
  });

  it("says the same to a person and to a program", async () => {
    const load = () => import("../lib/index.ts");
    const [text, json] = [fakeIo(), fakeIo()];
    expect(await main(["doctor"], text, load)).toBe(0);
    expect(await main(["doctor", "--json"], json, load)).toBe(0);
    const result = JSON.parse(json.stdout.text) as DoctorResult;
    for (const { name, status } of result.checks) {
      expect(text.stdout.text).toMatch(
        new RegExp(`^${status === "ok" ? "ok" : "."}.*${name}`, "m"),
      );
    }
    expect(text.stdout.text).toContain("All that is needed is here.");
  });

  it("exits with 1 and one sentence where something is missing", async () => {
    const io = fakeIo();
    const broken: DoctorResult = {
      version: "1",
      root: "/",
      usable: false,
      checks: [checkCpuAddon(tempFolder())],
    };
    const load = async () => ({ ...(await import("../lib/index.ts")), doctor: () => broken });
    expect(await main(["doctor"], io, load)).toBe(1);
    expect(io.stdout.text).toContain("PROBLEM  CPU addon   No native build was found");
    expect(io.stdout.text).toContain("Build it: npm run build:native");
    expect(io.stderr.text).toMatch(/^aq-native: this machine cannot run it yet[^\n]+\n$/);
  });
});

describe("a check", () => {
  it("of an addon that is damaged names the file and the loader's reason", () => {
    const root = tempFolder();
    const file = path.join(root, "build", "Release", "aq_native.node");
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, "not a library");
    const check = checkCpuAddon(root);
    expect(check).toMatchObject({ status: "problem", facts: { path: file } });
    expect(check.text).toContain(path.join("build", "Release", "aq_native.node"));
    expect(check.advice).toContain("build");
  });

  it("of the CUDA addon is never a problem, and asks to build it only where there is a driver", () => {
    expect(checkCudaAddon(false, { state: "absent" })).toMatchObject({
      status: "absent",
      advice: null,
    });
    expect(checkCudaAddon(true, { state: "absent" }).advice).toContain("npm run build:cuda");
    const dir = tempFolder();
    const file = path.join(dir, "build", "Release", "aq_cuda.node");
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, "");
    expect(checkCudaAddon(true, loadCuda([dir]))).toMatchObject({ status: "note" });
  });

  it("of the driver reads its version", () => {
    const file = path.join(tempFolder(), "version");
    fs.writeFileSync(
      file,
      "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
    );
    expect(checkGpuDriver(file)).toMatchObject({ status: "ok", text: "NVIDIA 550.54.15" });
    expect(checkGpuDriver(`${file}-none`)).toMatchObject({ status: "absent" });
  });

  it("of Node.js knows which versions are too old", () => {
    expect(checkNode("18.20.1")).toMatchObject({ status: "problem" });
    expect(checkNode("20.16.0").advice).toContain("20.17");
    expect(checkNode("20.17.0").status).toBe("ok");
    expect(checkNode("24.0.0").status).toBe("ok");
  });

  it("of the processor lists the features that matter, on x86 and on Arm", () => {
    expect(cpuFeatures("model name\t: X\nflags\t\t: fpu vme avx2 fma f16c\n")).toEqual([
      "avx2",
      "fma",
      "f16c",
    ]);
    expect(cpuFeatures("Features\t: fp asimd asimddp crc32\n")).toEqual(["asimd", "asimddp"]);
    expect(cpuFeatures("")).toEqual([]);
  });
});

describe("advice", () => {
  it.each([
    ["/lib/libm.so.6: version `GLIBC_2.38' not found (required by x.node)", "needs GLIBC_2.38"],
    ["libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "needs GLIBCXX_3.4.32"],
    ["libgomp.so.1: cannot open shared object file: No such file", "has libgomp.so.1"],
    ["x.node: invalid ELF header", "for another system"],
    [
      "compiled against a different Node.js version using NODE_MODULE_VERSION 93",
      "another Node.js",
    ],
    ["x.node: undefined symbol: aq_thing", "other sources"],
    ["it has interface version 1, and this aq-native needs 2", "the same version"],
    ["x.node: failed to map segment from shared object", "noexec"],
    ["something nobody has seen", "Build it again: make it."],
  ])("for '%s' says what to do", (message, expected) => {
    expect(loadAdvice(message, "make it")).toContain(expected);
  });
});
