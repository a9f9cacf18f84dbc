// Gradients of the first block of the trained fixture, on any device, and how far two sets are apart.
import * as path from "node:path";
import type { Var } from "../../lib/autograd/graph.ts";
import { mse } from "../../lib/autograd/ops/mse.ts";
import { Tape } from "../../lib/autograd/tape.ts";
import { disposeParameters } from "../../lib/calibration/parameters.ts";
import { forward } from "../../lib/calibration/passes.ts";
import { affinePhase } from "../../lib/calibration/phases/affine.ts";
import { resolveSettings } from "../../lib/calibration/settings.ts";
import { StatisticsHook } from "../../lib/calibration/statistics.ts";
import { Stream } from "../../lib/calibration/stream.ts";
import { openCheckpoint } from "../../lib/checkpoint/folder.ts";
import { embedWindow } from "../../lib/eval/perplexity.ts";
import type { BlockContext, Model } from "../../lib/models/family.ts";
import { disposeAll, type LoadedWeights, loadBlock, loadOuter } from "../../lib/models/load.ts";
import { openModel } from "../../lib/models/registry.ts";
import { passThrough } from "../../lib/quant/activations.ts";
import { scope } from "../../lib/tensor/scope.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import type { QuantizeOptions } from "../../lib/types.ts";
import { packageRoot } from "../../lib/util/package.ts";

const MODEL = "llama-gqa-4m";
const TOKENS = 96;

/** Numbers by the name of what they are the gradient of; the loss under "loss". */
export type Gradients = ReadonlyMap<string, Float32Array>;

interface Block {
  readonly model: Model;
  readonly context: BlockContext;
  readonly weights: LoadedWeights;
  /** States into the block [1, T, C], and out of it. */
  readonly input: Tensor;
  readonly output: Tensor;
}

/** The first block with one window of made-up tokens; everything is disposed afterwards. */
async function withBlock<T>(
  device: string,
  body: (block: Block) => Promise<T>,
  name = MODEL,
): Promise<T> {
  const checkpoint = openCheckpoint(path.join(packageRoot(), "test", "fixtures", name));
  const owned: { dispose(): void }[] = [];
  try {
    const model = openModel(checkpoint.config, (name) => checkpoint.has(name));
    const weights = loadBlock(checkpoint, model, 0, device);
    const outer = loadOuter(checkpoint, model, device);
    const context = model.context(TOKENS, "f32", device);
    owned.push({ dispose: () => disposeAll({ ...weights, ...outer }) }, context);
    const ids = Int32Array.from({ length: TOKENS }, (_, i) => (i * 7919) % model.shape.vocabulary);
    const input = embedWindow(model, outer, ids);
    const output = scope(() => forward(model, context, weights, input, () => passThrough));
    owned.push(input, output);
    disposeAll(outer);
    return await body({ model, context, weights, input, output });
  } finally {
    for (const item of owned) item.dispose();
    checkpoint.close();
  }
}

/** Of half the block's output squared away from its input, by every weight; nothing is quantized. */
export function blockGradients(device: string): Promise<Gradients> {
  return withBlock(
    device,
    async ({ model, context, weights, input }) =>
      scope(() => {
        const tape = new Tape();
        const vars: Record<string, Var> = {};
        for (const [key, w] of Object.entries(weights)) vars[key] = tape.parameter(w);
        const y = model.block(tape, context, vars, tape.constant(input), passThrough);
        const loss = mse(tape, y, tape.constant(input));
        const found = new Map([["loss", loss.value.tensor.floats()]]);
        tape.backward(loss);
        for (const [key, v] of Object.entries(vars)) {
          found.set(key, (tape.gradient(v) as Tensor).floats());
        }
        return { found };
      }).found,
  );
}

/** Of a step of the affine phase, by every learned parameter; fixture: another than the trained LLaMA. */
export function trainingGradients(
  device: string,
  options: Omit<QuantizeOptions, "model" | "out">,
  fixture = MODEL,
): Promise<Gradients> {
  const step = async ({ model, context, weights, input, output }: Block): Promise<Gradients> => {
    const settings = resolveSettings({
      model: "",
      out: "",
      epochs: 1,
      recipe: "affine",
      ...options,
    });
    const shape = { windows: 1, tokens: TOKENS, channels: model.shape.hidden };
    const [inputs, targets] = [
      new Stream(shape, undefined, device),
      new Stream(shape, undefined, device),
    ];
    const seen = new StatisticsHook(1);
    try {
      inputs.store(0, input);
      targets.store(0, output);
      scope(() => forward(model, context, weights, input, () => seen)).dispose();
      const found = new Map<string, Float32Array>();
      const result = await affinePhase(
        {
          index: 0,
          model,
          context,
          weights,
          statistics: await seen.finish(),
          inputs,
          targets,
          augTargets: undefined,
          scheme: settings.scheme,
          kept: new Set(),
          recipe: settings.recipe,
          settings: settings.train,
          rotated: false,
        },
        {
          onStep: (_epoch, _step, _steps, loss) => found.set("loss", Float32Array.of(loss)),
          watch: (gradients) => {
            for (const [name, g] of gradients) found.set(name, g.floats());
          },
        },
      );
      disposeParameters(result.parameters);
      return found;
    } finally {
      for (const item of [inputs, targets, seen]) item.dispose();
    }
  };
  return withBlock(device, step, fixture);
}

/** A gradient that is smaller than this share of the largest is nothing but rounding. */
const NEGLIGIBLE = 1e-5;

function norm(data: Float32Array | undefined): number {
  return Math.sqrt(data?.reduce((sum, x) => sum + x * x, 0) ?? 0);
}

/** |a - b| / |b| of every tensor (Frobenius); infinite where one of them is missing. */
export function distances(
  expected: Gradients,
  actual: Gradients,
): readonly { readonly name: string; readonly distance: number }[] {
  const smallest = NEGLIGIBLE * Math.max(...[...expected.values()].map(norm));
  return [...new Set([...expected.keys(), ...actual.keys()])].map((name) => {
    const [a, b] = [actual.get(name), expected.get(name)];
    if (!a || !b || a.length !== b.length) return { name, distance: Number.POSITIVE_INFINITY };
    const apart = norm(a.map((x, i) => x - (b[i] as number)));
    const distance = apart === 0 ? 0 : apart / Math.max(norm(b), smallest);
    return { name, distance: Number.isNaN(distance) ? Number.POSITIVE_INFINITY : distance };
  });
}
