/** The command line inside this process, with the package's functions replaced: what they are given, what is shown. */
import * as path from "node:path";
import { describe, expect, test } from "vitest";
import type { Api } from "../lib/cli/api.ts";
import { AqError } from "../lib/errors.ts";
import type { QuantizeResult } from "../lib/types.ts";
import { BLOCK, INSPECTED, RESULT, run } from "./helpers/fake-api.ts";
import { fakeIo } from "./helpers/fake-io.ts";
import { sampleLayers } from "./helpers/sample-report.ts";

const QUANTIZE = ["quantize", "--model", "m", "--out", "o"];

describe("options", () => {
  test("what is not given is absent, so that the API's defaults hold", async () => {
    const { code, options } = await run(QUANTIZE);
    expect(code).toBe(0);
    expect(options).toEqual([{ model: "m", out: "o" }]);
  });

  test("every option arrives under the API's name and type", async () => {
    const line =
      "--wbits 3 --abits 16 --group-size 64 --recipe lwc-only --calib c.txt --nsamples 8 --seqlen 128 " +
      "--epochs 2 --batch 4 --sampling random --symmetric --alpha 0.75 --sf 1e-2 --let-lr .001 --lwc-lr 2E-2 " +
      "--wd 0.1 --no-aug-loss --seed 7 --threads 2 --device cuda:1 --precision f16 --overwrite --json";
    const { code, options } = await run([...QUANTIZE, ...line.split(" ")]);
    expect(code).toBe(0);
    expect(options).toEqual([
      {
        model: "m",
        out: "o",
        wbits: 3,
        abits: 16,
        groupSize: 64,
        recipe: "lwc-only",
        calib: "c.txt",
        nsamples: 8,
        seqlen: 128,
        epochs: 2,
        batch: 4,
        sampling: "random",
        symmetric: true,
        alpha: 0.75,
        sf: 0.01,
        letLr: 0.001,
        lwcLr: 0.02,
        wd: 0.1,
        augLoss: false,
        seed: 7,
        threads: 2,
        device: "cuda:1",
        precision: "f16",
        overwrite: true,
      },
    ]);
  });

  test("--scheme is one of the names, in whichever case", async () => {
    const { options } = await run([...QUANTIZE, "--scheme", "nvfp4a16"]);
    expect(options).toEqual([{ model: "m", out: "o", scheme: "NVFP4A16" }]);
    const { code, stderr } = await run([...QUANTIZE, "--scheme", "nvpf4"]);
    expect(code).toBe(2);
    expect(stderr).toContain("Did you mean NVFP4?");
  });

  test("--keep takes several names, and more when it is given again", async () => {
    const line = "--keep *.down_proj layers.0.* --wbits 3 --keep model.layers.3.mlp.up_proj";
    const { options } = await run(["quantize", ...line.split(" "), "--model", "m", "--out", "o"]);
    const keep = ["*.down_proj", "layers.0.*", "model.layers.3.mlp.up_proj"];
    expect(options).toEqual([{ model: "m", out: "o", wbits: 3, keep }]);
    for (const name of ["", "a b", "re:.*"]) {
      const { code, stderr } = await run([...QUANTIZE, "--keep", name]);
      expect([code, stderr.includes("as the checkpoint has it")], name).toEqual([2, true]);
    }
    expect((await run([...QUANTIZE, "--keep"])).code).toBe(2);
  });

  test("--aug-loss switches it on", async () => {
    const { options } = await run([...QUANTIZE, "--aug-loss"]);
    expect(options).toEqual([{ model: "m", out: "o", augLoss: true }]);
  });

  test("eval passes device and precision on", async () => {
    const line =
      "--text t --seqlen 64 --windows 3 --abits 16 --threads 1 --device auto --precision f32";
    const { code, options } = await run(["eval", "--model", "m", ...line.split(" ")]);
    expect(code).toBe(0);
    expect(options).toEqual([
      {
        model: "m",
        text: "t",
        seqlen: 64,
        windows: 3,
        abits: 16,
        threads: 1,
        device: "auto",
        precision: "f32",
      },
    ]);
  });

  test.each(["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "CPU"])(
    "a device '%s' is refused before anything is loaded",
    async (name) => {
      const { code, stderr, options } = await run([...QUANTIZE, "--device", name]);
      expect(code).toBe(2);
      expect(options).toEqual([]);
      expect(stderr).toContain("Expected auto, cpu, cuda or cuda:N");
    },
  );

  test.each(["Infinity", "NaN", "0x4", "1e400", "", " 0.1", "-0.1", "1.5"])(
    "a rate of '%s' is refused before anything is loaded",
    async (value) => {
      const { code, options } = await run([...QUANTIZE, "--let-lr", value]);
      expect(code).toBe(2);
      expect(options).toEqual([]);
    },
  );
});

describe("quantize", () => {
  test("tells a person the result on stdout and the way there on stderr", async () => {
    const { stdout, stderr } = await run(QUANTIZE);
    expect(stdout.split("\n")).toEqual([
      "perplexity  40.00 -> 50.00  (+25.0 %)",
      "written to  out/my model  (1 block in 1m 24s)",
      `report      ${path.join("out/my model", "aq", "report.html")}`,
      "next        aq-native eval --model 'out/my model' --text FILE",
      "",
    ]);
    expect(stderr.split("\n")).toEqual([
      "note: using the shipped text",
      "block 1/1  loss 0.03210 -> 0.01120  stream error 4.3 %  equivalence 2.0e-7  margin 0.95  12 s",
      "",
    ]);
  });

  test("names the layer that loses most", async () => {
    const blocks = [{ ...BLOCK, layers: sampleLayers(0, 0.031, 0.124) }];
    const { stdout } = await run(QUANTIZE, { quantize: async () => ({ ...RESULT, blocks }) });
    expect(stdout).toContain(
      "worst layer model.layers.0.mlp.down_proj  (weights 12.4 %, activations 12.4 %; --keep leaves it as it is)\n",
    );
  });

  test("--json writes nothing but JSON lines, `done` once and last", async () => {
    const { stdout, stderr } = await run([...QUANTIZE, "--json"]);
    expect(stderr).toBe("");
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map((line) => line.event)).toEqual(["note", "block", "done"]);
    expect(lines.at(-1)).toEqual({ event: "done", ...RESULT });
  });

  test("says when blocks could not be trained", async () => {
    const result: QuantizeResult = { ...RESULT, blocks: [{ ...BLOCK, fallback: "rtn" }] };
    const { code, stderr } = await run(QUANTIZE, { quantize: async () => result });
    expect(code).toBe(0);
    expect(stderr).toContain("1 block could not be trained and was rounded to nearest.");
  });
});

describe("eval and inspect", () => {
  test("eval prints the perplexity with its standard error", async () => {
    const { stdout } = await run(["eval", "--model", "m", "--text", "t"]);
    expect(stdout).toBe("perplexity  40.50 +- 0.62  (2 windows, 1,024 tokens)\n");
  });

  test("eval --json ends with one object", async () => {
    const { stdout } = await run(["eval", "--model", "m", "--text", "t", "--json"]);
    const last = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "");
    expect(last).toEqual({ event: "done", ppl: 40.5, stderr: 0.62, windows: 2, tokens: 1024 });
  });

  test("inspect shows the facts and the sites in columns", async () => {
    const { stdout } = await run(["inspect", "--model", "m"]);
    expect(stdout).toContain("attention   8 heads of 32, 4 key/value heads\n");
    expect(stdout).toContain("stored as   f16, 8.0 MiB in 1 file\n");
    expect(stdout).toContain("vo    4 matrices 32 x 32       4,096  v, o\n");
  });

  test("inspect calls 4-bit floats by their name, and counts what is kept", async () => {
    const base = { wbits: 4, abits: 4, groupSize: 16 };
    const line = async (quantized: object) => {
      const inspect = () => ({ ...INSPECTED, quantized: { ...base, ...quantized } });
      const { stdout } = await run(["inspect", "--model", "m"], { inspect });
      return /^quantized +(.*)$/m.exec(stdout)?.[1];
    };
    expect(await line({ scheme: "NVFP4", kept: 4 })).toBe(
      "by aq-native: NVFP4, 4 linears left as stored",
    );
    expect(await line({ scheme: "MXFP4A16", format: "compressed-tensors" })).toBe(
      "packed as compressed-tensors: MXFP4A16",
    );
    expect(await line({ kept: 1 })).toContain("4-bit activations, 1 linear left as stored");
  });

  test("inspect --json is the result as it is", async () => {
    const { stdout } = await run(["inspect", "--model", "m", "--json"]);
    expect(JSON.parse(stdout)).toEqual(INSPECTED);
  });
});

describe("errors", () => {
  const failing = (error: unknown): Partial<Api> => ({
    quantize: async () => {
      throw error;
    },
  });

  test("an AqError is its sentence, exit 1", async () => {
    const { code, stderr } = await run(QUANTIZE, failing(new AqError("AQ_FILE", "no such file.")));
    expect(code).toBe(1);
    expect(stderr).toBe("aq-native: no such file.\n");
  });

  test("a run that was stopped exits with 75", async () => {
    const { code, stderr } = await run(QUANTIZE, failing(new AqError("AQ_STOPPED", "stopped.")));
    expect(code).toBe(75);
    expect(stderr).toBe("aq-native: stopped.\n");
  });

  test("an unexpected error says how to see the stack", async () => {
    const { code, stderr } = await run(QUANTIZE, failing(new TypeError("x is\nnot a function")));
    expect(code).toBe(1);
    expect(stderr).toBe(
      "aq-native: unexpected error: x is not a function. Run again with AQ_DEBUG=1 to see where it happened.\n",
    );
  });

  test("AQ_DEBUG=1 shows the stack, and the cause's", async () => {
    const io = fakeIo();
    io.env["AQ_DEBUG"] = "1";
    const cause = new RangeError("the cause");
    const error = new AqError("AQ_FORMAT", "bad header.", { cause });
    const { stderr } = await run(QUANTIZE, failing(error), io);
    expect(stderr).toMatch(/^aq-native: bad header\.\n/);
    expect(stderr).toContain("    at ");
    expect(stderr).toContain("caused by: RangeError: the cause");
  });

  test("the status line is taken away before the error is told", async () => {
    const io = fakeIo({ columns: 60 });
    await run(
      QUANTIZE,
      {
        async quantize(_options, hooks) {
          hooks?.onEvent?.({ event: "phase", block: 0, phase: "statistics" });
          throw new AqError("AQ_NUMERIC", "no.");
        },
      },
      io,
    );
    expect(io.stderr.text.endsWith("\r\x1b[Kaq-native: no.\n")).toBe(true);
  });

  test("signals are listened to during a run only, and abort it", async () => {
    const before = process.listenerCount("SIGINT");
    const { code, stderr } = await run(QUANTIZE, {
      async quantize(_options, hooks) {
        expect(process.listenerCount("SIGINT")).toBe(before + 1);
        process.emit("SIGINT", "SIGINT");
        expect(hooks?.signal?.aborted).toBe(true);
        throw new AqError("AQ_STOPPED", "stopped.");
      },
    });
    expect(code).toBe(75);
    expect(stderr).toContain("press Ctrl-C again to stop at once");
    expect(process.listenerCount("SIGINT")).toBe(before);
  });
});
