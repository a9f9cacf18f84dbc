/** The one way to run an op of the engine. */

import { AqError } from "../errors.ts";
import { native } from "../native/load.ts";
import type { OpInfo } from "../native/types.ts";
import { guarded, Tensor } from "./tensor.ts";

interface Entry {
  readonly index: number;
  readonly info: OpInfo;
  readonly params: readonly string[];
}

let table: Map<string, Entry> | undefined;

function registry(): Map<string, Entry> {
  table ??= new Map(
    native()
      .ops()
      .map((info, index) => [info.name, { index, info, params: info.params.map((p) => p.name) }]),
  );
  return table;
}

/** Every op of the registry, by name. */
export function opNames(): string[] {
  return [...registry().keys()];
}

/** Names, inputs, outputs and parameters of one op. Throws: AQ_ARG if there is none of that name. */
export function opInfo(name: string): OpInfo {
  return entry(name).info;
}

/** How often each op's kernel of a backend ("cpu", "cuda") ran in this process. */
export function kernelCalls(backend: string): Record<string, number> {
  const counts = native().kernelCalls(backend);
  return Object.fromEntries(opNames().map((name, i) => [name, counts[i] ?? 0]));
}

function entry(name: string): Entry {
  const found = registry().get(name);
  if (!found) throw new AqError("AQ_ARG", `there is no op '${name}'`);
  return found;
}

const NO_PARAMS: Readonly<Record<string, number>> = {};

/**
 * Runs op `name`.
 *
 * Parameters go by the names of native/abi/params.h; each must be given, none may be unknown.
 * `outs` are tensors to write into instead of new ones; the returned handles then share their
 * memory.
 *
 * Throws: AQ_ARG, AQ_SHAPE, AQ_DTYPE with op, input and both shapes; AQ_DISPOSED; AQ_OOM.
 */
export function invoke(
  name: string,
  inputs: readonly (Tensor | undefined)[],
  params: Readonly<Record<string, number>> = NO_PARAMS,
  outs?: readonly Tensor[],
): Tensor[] {
  const { index, params: order } = entry(name);
  const values = order.map((param) => {
    const value = params[param];
    if (value === undefined) throw new AqError("AQ_ARG", `${name}: parameter ${param} is missing`);
    return value;
  });
  for (const given in params) {
    if (!order.includes(given)) {
      throw new AqError(
        "AQ_ARG",
        `${name}: there is no parameter '${given}'; it has ${order.join(", ") || "none"}`,
      );
    }
  }
  const handles = inputs.map((tensor) => tensor?.handle);
  const results = guarded(() =>
    native().invoke(
      index,
      handles,
      values,
      outs?.map((tensor) => tensor.handle),
    ),
  );
  return results.map((handle) => new Tensor(handle));
}

/** Runs an op that has exactly one output. */
export function invokeOne(
  name: string,
  inputs: readonly (Tensor | undefined)[],
  params: Readonly<Record<string, number>> = NO_PARAMS,
  out?: Tensor,
): Tensor {
  const [result] = invoke(name, inputs, params, out ? [out] : undefined);
  return result as Tensor;
}
