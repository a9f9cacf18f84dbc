/** `aq-native inspect`. */
import type { InspectOptions, InspectResult, RunProgress } from "../types.ts";
import type { ApiLoader } from "./api.ts";
import { byteSize, duration, grouped, perplexity, plural, table } from "./format.ts";
import type { Io } from "./io.ts";
import { JsonLines } from "./json-lines.ts";
import type { OutputOptions } from "./options.ts";

export const INSPECT_EXAMPLES: readonly [string, string][] = [
  ["what a checkpoint is, and what the method will do to it", "--model ./model"],
  ["the same for a program", "--model ./model --json"],
];

export async function runInspect(
  options: InspectOptions,
  output: OutputOptions,
  io: Io,
  load: ApiLoader,
): Promise<void> {
  const api = await load();
  const result = await api.inspect(options);
  if (output.json) {
    new JsonLines(io.stdout, io).write(result);
  } else {
    io.stdout.write(`${describe(result).join("\n")}\n`);
  }
}

/** The facts, one a line, then a table of the sites. */
export function describe(result: InspectResult): string[] {
  const facts = table([
    ["model", result.model],
    ["family", `${result.family}, ${plural(result.blocks, "block")}`],
    ["hidden", grouped(result.hidden)],
    ["attention", attention(result)],
    ["mlp", `${grouped(result.mlp)}${result.mlpBias ? ", bias" : ""}`],
    ["positions", positions(result)],
    [
      "vocabulary",
      `${grouped(result.vocabulary)}, output head ${result.tiedHead ? "tied to the embedding" : "of its own"}`,
    ],
    ["parameters", grouped(result.parameters)],
    ["stored as", `${result.dtype}, ${byteSize(result.bytes)} in ${plural(result.shards, "file")}`],
    ["quantized", quantization(result)],
  ]);
  const run = result.run ? ["", ...table(runFacts(result.run))] : [];
  if (result.sites.length === 0) return [...facts, ...run];
  const sites = table(
    [
      ["site", "map", "parameters", "folds into"],
      ...result.sites.map((site) => [
        site.site,
        site.map,
        grouped(site.parameters),
        site.foldsInto.join(", "),
      ]),
    ],
    [false, false, true, false],
  );
  return [...facts, "", ...sites, ...run];
}

function runFacts(run: RunProgress): string[][] {
  const { pplBefore, pplAfter, secondsLeft } = run;
  const state = run.status === "done" ? "done" : "unfinished; the command that began it goes on";
  const facts = [
    ["run", `${state} (${run.writtenBy})`],
    ["source", run.source],
    ["blocks", `${run.blocksDone} of ${run.blocks} stored, ${duration(run.seconds)} so far`],
  ];
  if (pplBefore !== null) {
    const after = pplAfter === null ? "" : ` -> ${perplexity(pplAfter)}`;
    facts.push(["perplexity", `${perplexity(pplBefore)}${after}`]);
  }
  if (run.left.length > 0) {
    const about = secondsLeft ? ` (about ${duration(secondsLeft)} for the blocks)` : "";
    facts.push(["left", `${run.left.join(", ")}${about}`]);
  }
  return facts;
}

function attention(result: InspectResult): string {
  const { heads, kvHeads, headDim, attentionBias, headNorms } = result;
  const groups = kvHeads === heads ? "" : `, ${plural(kvHeads, "key/value head")}`;
  const more = `${attentionBias ? ", bias" : ""}${headNorms ? ", norms of q and k" : ""}`;
  return `${plural(heads, "head")} of ${headDim}${groups}${more}`;
}

function positions({ rope, maxTokens, slidingWindow }: InspectResult): string {
  const why = slidingWindow === undefined ? "" : " (the window of its attention)";
  return `${rope}, at most ${plural(maxTokens, "token")}${why}`;
}

function quantization({ quantized }: InspectResult): string {
  if (quantized === null) return "no";
  const { wbits, abits, groupSize, scheme, kept = 0 } = quantized;
  const grid = groupSize > 0 ? `groups of ${groupSize}` : "per output channel";
  const activations = abits < 16 ? `${abits}-bit activations` : "activations as they are";
  const transform = quantized.hadamardDown ? ", a Hadamard transform before down" : "";
  const how = quantized.format === undefined ? "by aq-native" : `packed as ${quantized.format}`;
  const left = kept > 0 ? `, ${plural(kept, "linear")} left as stored` : "";
  if (scheme !== undefined) return `${how}: ${scheme}${left}${transform}`;
  return `${how}: ${wbits}-bit weights, ${grid}, ${activations}${left}${transform}`;
}
