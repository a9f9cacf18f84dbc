// Which device a run takes, and what it says when it cannot have the one that was asked for.
import * as fs from "node:fs";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { type CudaAddon, cudaAddon, driverVersion, loadCuda } from "../lib/native/cuda.ts";
import { native } from "../lib/native/load.ts";
import { type ComputeChoice, openDevice } from "../lib/tensor/compute-device.ts";
import { deviceInfo, devices } from "../lib/tensor/device.ts";
import { COMMAND, runCommand } from "./helpers/command.ts";
import { expectAqError, expectAqRejection } from "./helpers/expect-error.ts";
import { BOOKS, TRAINED } from "./helpers/fixture.ts";
import { SMALL, smallRun } from "./helpers/small-run.ts";
import { tempFolders } from "./helpers/temp-folder.ts";

const tempFolder = tempFolders();
cudaAddon();
const hasGpu = devices().some((name) => name.startsWith("cuda"));

const absent = (): CudaAddon => ({ state: "absent" });
const ready = (): CudaAddon => ({ state: "ready", file: "/x/aq_cuda.node" });
const unusable = (): CudaAddon => ({ state: "unusable", file: "/x/aq_cuda.node", reason: "why" });

/** A folder in which node-gyp-build finds an addon. */
function addonFolder(content = ""): string {
  const dir = tempFolder();
  fs.mkdirSync(path.join(dir, "build", "Release"), { recursive: true });
  fs.writeFileSync(path.join(dir, "build", "Release", "aq_cuda.node"), content);
  return dir;
}

describe("the CUDA addon", () => {
  it("is absent where no folder has one", () => {
    expect(loadCuda([tempFolder(), "/no/such/folder"])).toEqual({ state: "absent" });
  });

  it("is unusable, with the loader's words, where the file is no addon", () => {
    const addon = loadCuda([tempFolder(), addonFolder("not a library")]);
    expect(addon).toMatchObject({
      state: "unusable",
      reason: expect.stringMatching(/does not load/),
    });
  });

  it("of another version is refused with both versions", () => {
    const addon = loadCuda([addonFolder()], () => ({ abi: 999, backend: {} }));
    const needed = native().abiVersion;
    expect(addon).toMatchObject({
      state: "unusable",
      reason: `it has interface version 999, and this aq-native needs ${needed}: both must be of the same version`,
    });
  });

  it("that hands over something else is refused", () => {
    const addon = loadCuda([addonFolder()], () => ({ abi: native().abiVersion, backend: {} }));
    expect(addon).toMatchObject({ state: "unusable", reason: expect.stringContaining("backend") });
  });
});

describe("opening a device", () => {
  const refused = (
    choice: ComputeChoice,
    addon: () => CudaAddon,
    code: string,
    ...texts: string[]
  ) => expectAqError(() => openDevice(choice, addon), code as "AQ_ARG", ...texts);

  it("takes the CPU where it is named, in f32", () => {
    expect(openDevice({ device: "cpu", precision: "f32" }, absent)).toMatchObject({
      name: "cpu",
      kind: "cpu",
      precision: "f32",
      description: deviceInfo("cpu").detail,
    });
  });

  it("refuses names and precisions that do not exist, and another precision on the CPU", () => {
    refused({ device: "gpu" as "cpu" }, absent, "AQ_ARG", "auto, cpu, cuda or cuda:N", '"gpu"');
    refused({ precision: "fp8" as "f32" }, absent, "AQ_ARG", "f32 or bf16 or f16", '"fp8"');
    refused({ device: "cpu", precision: "bf16" }, absent, "AQ_ARG", "precision bf16 needs a GPU");
    refused({ precision: "f16" }, absent, "AQ_ARG", "precision f16 needs a GPU");
  });

  it("falls back to the CPU with auto, and says so where an addon cannot be used", () => {
    expect(openDevice({}, absent)).toMatchObject({ name: "cpu", note: undefined });
    const note = openDevice({ device: "auto" }, unusable).note;
    expect(note).toContain("/x/aq_cuda.node cannot be used and the run is on the CPU: why");
  });

  it("says how to come by the addon, or what is wrong with it, where a GPU is named", () => {
    refused({ device: "cuda" }, absent, "AQ_ADDON", "--device cuda", "npm run build:cuda");
    refused(
      { device: "cuda:1" },
      unusable,
      "AQ_ADDON",
      "--device cuda:1",
      "/x/aq_cuda.node",
      "why",
    );
  });

  it.skipIf(hasGpu)("says that there is no driver, or no GPU", () => {
    const why = driverVersion() === undefined ? "no NVIDIA driver is found" : "shows no GPU";
    refused({ device: "cuda" }, ready, "AQ_DEVICE", "there is no device cuda:0", why);
    refused({ device: "cuda:7" }, ready, "AQ_DEVICE", "there is no device cuda:7", why);
    expect(openDevice({}, ready).name).toBe("cpu");
  });

  it.skipIf(!hasGpu)("says which GPUs there are where the number is too large", () => {
    refused({ device: "cuda:99" }, cudaAddon, "AQ_DEVICE", "no device cuda:99", "cuda:0 (");
  });

  it.skipIf(!hasGpu)("keeps the precision of a GPU that is at work", () => {
    const first = openDevice({ device: "cuda", precision: "f32" });
    const second = openDevice({ device: "cuda:0" });
    expect([first.precision, second.precision]).toEqual(["f32", "f32"]);
    refused({ device: "cuda", precision: "bf16" }, cudaAddon, "AQ_DEVICE", "at work", "f32");
    for (const device of [first, second]) device.release();
    const third = openDevice({ device: "cuda" });
    expect(third).toMatchObject({ name: "cuda:0", kind: "cuda", precision: "bf16" });
    expect(third.description).toMatch(/^cuda:0 .+, bf16 products$/);
    third.release();
  });
});

describe("a run", () => {
  it.skipIf(hasGpu)(
    "without a GPU is on the CPU, and goes on only on the same kind of device",
    async () => {
      const out = tempFolder();
      const { events } = await smallRun({ out, device: "auto", recipe: "rtn" });
      expect(events[0]).toMatchObject({ event: "start", device: deviceInfo("cpu").detail });
      const file = path.join(out, "aq", "job.json");
      const job = fs.readFileSync(file, "utf8");
      expect(job).toContain('"device": "cpu"');
      fs.writeFileSync(file, job.replace('"device": "cpu"', '"device": "cuda"'));
      await expectAqRejection(
        smallRun({ out, recipe: "rtn" }),
        "AQ_ARG",
        'the setting device was "cuda" and is now "cpu"',
      );
    },
  );

  it("that cannot have its device ends with one sentence, before anything is written", () => {
    expect(fs.existsSync(COMMAND)).toBe(true);
    const out = path.join(tempFolder(), "out");
    const common = ["--model", TRAINED, "--calib", BOOKS, "--out", out];
    const outcome = runCommand("quantize", ...common, "--device", "cuda:77");
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toMatch(/^aq-native: .*cuda:77.*\n$/);
    const other = runCommand("quantize", ...common, "--device", "cpu", "--precision", "bf16");
    expect(other.code).toBe(1);
    expect(other.stderr).toMatch(/^aq-native: precision bf16 needs a GPU/);
    expect(fs.existsSync(out)).toBe(false);
    expect(SMALL.device).toBe("cpu");
  });
});
