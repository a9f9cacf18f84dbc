/**
 * Run-time matrices behind norms in compressed-tensors' transform_config, which vLLM executes: before a
 * linear it computes x M / sqrt(n) with a matrix that is stored beside the linear's weight. With the
 * residue R of a norm, whose block computes h Rt, M = sqrt(n) Rt. Experimental: no release promises that
 * a scheme of type "random-hadamard" takes any matrix, but its code multiplies by what it is given.
 */

import { isRunTime } from "../export/aq-config.ts";
import { quantizesTokens } from "../quant/scheme.ts";
import type { JsonObject } from "../util/json.ts";
import type { ChangeMeter } from "./change.ts";
import { transposed } from "./pack.ts";
import { shortsOf } from "./plain.ts";
import type { FinishedRun, StoredLinear } from "./run.ts";
import type { Setting } from "./setting.ts";
import type { PlannedTensor } from "./shards.ts";

/** Why the setting's matrices cannot be carried, or nothing. */
export function refusesResidues(name: string, setting: Setting): string | undefined {
  const { model, added, scheme } = setting;
  const { attentionBias, mlpBias } = model.traits;
  if (model.hadamardDown) {
    return `${name} has no place for the Hadamard transform before down; quantize with --hadamard none, or write aq`;
  }
  if (quantizesTokens(scheme)) {
    return `${name} applies the matrices of --norm-full to full-precision activations alone; leave the option out, or write aq`;
  }
  if (attentionBias || mlpBias || !added.every(isRunTime)) {
    return `${name} cannot apply the matrices of --norm-full before linears with biases; leave the option out, or write aq`;
  }
  return undefined;
}

/** Norms with a residue, and the linears behind each. */
function places(run: FinishedRun): readonly { norm: string; consumers: readonly string[] }[] {
  const { added, model } = run.setting;
  return model.residual.reads.filter(({ norm }) => added.includes(`${norm}.residue`));
}

function schemeName(block: number, norm: string): string {
  return `aq_${block}_${norm}`;
}

/** The matrix of a block's residue, once for each linear behind it: loaders look there. */
export function planResidues(
  run: FinishedRun,
  block: number,
  key: string,
  meter: ChangeMeter,
): PlannedTensor[] {
  const norm = key.replace(/\.residue$/, "");
  const { hidden } = run.model.shape;
  const name = run.model.blockTensors(block).find((spec) => spec.key === key)?.name ?? "";
  return consumersOf(run, block, norm).map(({ prefix }) => {
    const target = `${prefix}.${schemeName(block, norm)}_input.weight`;
    const pieces = (): Uint8Array[] => {
      const residue = run.plain(block, name, [hidden, hidden]);
      const scale = Math.sqrt(hidden);
      const m = transposed(residue, hidden, hidden).map((r) => scale * r);
      return [shortsOf(m, target, meter)];
    };
    return { name: target, dtype: "F16", shape: [hidden, hidden], pieces };
  });
}

function consumersOf(run: FinishedRun, block: number, norm: string): StoredLinear[] {
  const consumers = places(run).find((place) => place.norm === norm)?.consumers ?? [];
  return run.linears(block).filter(({ key }) => consumers.includes(key));
}

/** One scheme for each block and norm: matrices are shared within a scheme. */
export function residueConfig(run: FinishedRun): JsonObject {
  const groups: JsonObject = {};
  for (let block = 0; block < run.model.shape.blocks; block++) {
    for (const { norm } of places(run)) {
      const targets = consumersOf(run, block, norm).map(({ prefix }) => prefix);
      groups[schemeName(block, norm)] = {
        type: "random-hadamard",
        apply: [{ targets, location: "input", inverse: false, ignore: [] }],
        randomize: false,
        requires_grad: false,
        head_dim: null,
        precision: "torch.float32",
      };
    }
  }
  return { config_groups: groups };
}
