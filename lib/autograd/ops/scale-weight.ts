import { invoke, invokeOne } from "../../tensor/invoke.ts";
import { type Graph, type OpPair, tensorOf, type Var } from "../graph.ts";
import { ScaledVar } from "../scaled.ts";

const pair: OpPair<null> = {
  name: "scale_weight",
  forward: ([w, r, c]) => ({
    tensor: invokeOne("scale_weight", [w?.tensor, r?.tensor, c?.tensor]),
  }),
  backward: ({ g, inputs, needs }) => {
    const [, r, c] = inputs;
    const gw = needs[0] ? invokeOne("scale_weight", [g, r?.tensor, c?.tensor]) : undefined;
    if (!needs[1] && !needs[2]) return [gw, undefined, undefined];
    const [gr, gc] = invoke("scale_weight_grad", [tensorOf(inputs, 0), r?.tensor, c?.tensor, g]);
    return [gw, unlessNeeded(gr, needs[1]), unlessNeeded(gc, needs[2])];
  },
};

function unlessNeeded<T extends { dispose(): void }>(
  tensor: T | undefined,
  needed: boolean | undefined,
): T | undefined {
  if (needed) return tensor;
  tensor?.dispose();
  return undefined;
}

/**
 * diag(r) W diag(c), with W [O, I], r [O] and c [I]; an absent factor is the identity. While a graph
 * records on a GPU the product is left to whoever uses it (see ScaledVar); on a CPU multiplying once
 * costs less than at every use.
 */
export function scaleWeight(
  graph: Graph,
  w: Var,
  scales: { rows?: Var | undefined; columns?: Var | undefined },
): Var {
  const multiply = ({ base, rows, columns }: Pick<ScaledVar, "base" | "rows" | "columns">): Var =>
    graph.apply(pair, [base, rows, columns], null);
  const known = w instanceof ScaledVar ? w : undefined;
  const isFree = !(known?.rows && scales.rows) && !(known?.columns && scales.columns);
  const base = known && isFree ? known.base : w;
  if (!graph.records || baseOf(w).value.tensor.device === "cpu") {
    return multiply({ base: w, rows: scales.rows, columns: scales.columns });
  }
  const rows = scales.rows ?? (isFree ? known?.rows : undefined);
  const columns = scales.columns ?? (isFree ? known?.columns : undefined);
  return new ScaledVar(base, { rows, columns }, multiply);
}

/**
 * Applies to a weight what only mixes its rows, past factors of its columns that wait: they commute.
 */
export function underColumns(graph: Graph, w: Var, mixRows: (w: Var) => Var): Var {
  if (!(w instanceof ScaledVar) || w.rows) return mixRows(w);
  return scaleWeight(graph, mixRows(w.base), { columns: w.columns });
}

/** The same for what only mixes columns, past factors of rows. */
export function underRows(graph: Graph, w: Var, mixColumns: (w: Var) => Var): Var {
  if (!(w instanceof ScaledVar) || w.columns) return mixColumns(w);
  return scaleWeight(graph, mixColumns(w.base), { rows: w.rows });
}

function baseOf(w: Var): Var {
  return w instanceof ScaledVar ? baseOf(w.base) : w;
}
