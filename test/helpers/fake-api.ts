/** The command line inside a test's process: the package's functions replaced by ones that tell what they were given. */
import type { Api } from "../../lib/cli/api.ts";
import { main } from "../../lib/cli/main.ts";
import { AqError } from "../../lib/errors.ts";
import type { BlockReport, InspectResult, QuantizeResult } from "../../lib/types.ts";
import { type FakeIo, fakeIo } from "./fake-io.ts";

export const BLOCK: BlockReport = {
  block: 0,
  lossFirst: 0.0321,
  lossLast: 0.0112,
  losses: {},
  equivalence: 2e-7,
  equivalenceStored: 4e-4,
  dominanceMargin: 0.95,
  streamError: 0.043,
  skippedSteps: 0,
  phaseSeconds: {},
  fallback: null,
  seconds: 12,
};
export const RESULT: QuantizeResult = {
  out: "out/my model",
  seconds: 83.6,
  pplBefore: 40,
  pplAfter: 50,
  blocks: [BLOCK],
};
export const INSPECTED: InspectResult = {
  model: "model",
  family: "llama",
  blocks: 4,
  hidden: 256,
  heads: 8,
  kvHeads: 4,
  headDim: 32,
  mlp: 704,
  vocabulary: 8192,
  maxTokens: 512,
  tiedHead: true,
  attentionBias: false,
  mlpBias: false,
  rope: "RoPE, base 10000",
  dtype: "f16",
  shards: 1,
  parameters: 4213248,
  bytes: 8426496,
  quantized: null,
  sites: [{ site: "vo", map: "4 matrices 32 x 32", parameters: 4096, foldsInto: ["v", "o"] }],
};

const COUNTS = { linears: 7, codes: 4096, others: 2 };

interface Calls {
  readonly options: unknown[];
}

function api(replaced: Partial<Api>, calls: Calls = { options: [] }): Api {
  return {
    async quantize(options, hooks) {
      calls.options.push(options);
      hooks?.onEvent?.({ event: "note", text: "using the shipped text" });
      hooks?.onEvent?.({ event: "block", blocks: 1, ...BLOCK });
      hooks?.onEvent?.({ event: "done", ...RESULT });
      return RESULT;
    },
    async exportRun({ out }) {
      const change = { max: 0, rms: 0 };
      const written = { files: ["model.gguf"], bytes: 4096, change, otherChange: null };
      return { format: "gguf", out, ...written, verified: COUNTS, notes: [], seconds: 1 };
    },
    async verify({ dir }) {
      return { run: dir, folders: [] };
    },
    async load(dir, options) {
      calls.options.push({ dir, ...options });
      return {
        family: "llama",
        device: "cpu",
        maxLength: 64,
        vocabulary: 9,
        load: { waiting: 0, active: 0 },
        encode: () => Int32Array.of(1, 2),
        async *generate(prompt, options) {
          const { signal: _, ...rest } = options ?? {};
          calls.options.push({ prompt, ...rest });
          yield { id: 3, text: " a" };
          yield { id: 4, text: "" };
          yield { id: 5, text: "\u001b[2Jb" };
          return "length";
        },
        async dispose() {},
      };
    },
    async serve(options) {
      calls.options.push(options);
      process.nextTick(() => process.emit("SIGTERM"));
      return { url: "http://127.0.0.1:1234", device: "cpu", async close() {} };
    },
    async evaluate(options, hooks) {
      calls.options.push(options);
      hooks?.onEvent?.({ event: "window", window: 0, windows: 2, ppl: 41 });
      return { ppl: 40.5, stderr: 0.62, windows: 2, tokens: 1024 };
    },
    inspect(options) {
      calls.options.push(options);
      return INSPECTED;
    },
    doctor: () => ({ version: "1", root: "/", usable: true, checks: [] }),
    estimate() {
      throw new AqError("AQ_INTERNAL", "no test asks for this");
    },
    ...replaced,
  };
}

export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** What the functions were given. */
  readonly options: readonly unknown[];
}

/** Runs a command line. */
export async function run(
  line: string[],
  replaced: Partial<Api> = {},
  io: FakeIo = fakeIo(),
): Promise<Outcome> {
  const calls: Calls = { options: [] };
  const code = await main(line, io, async () => api(replaced, calls));
  return { code, stdout: io.stdout.text, stderr: io.stderr.text, options: calls.options };
}
