// Which linears stay as they are: patterns of names, rows that groups do not divide, and what is said.
import { describe, expect, it } from "vitest";
import { checkKeep, keepNotes, keptKeys } from "../lib/calibration/keep.ts";
import type { Model } from "../lib/models/family.ts";
import { keptActivations } from "../lib/models/kept.ts";
import { schemeOf } from "../lib/quant/presets.ts";
import { expectAqError } from "./helpers/expect-error.ts";
import { OPT, TRAINED, withModel } from "./helpers/fixture.ts";

const llama: Model = withModel(TRAINED, ({ model }) => model);
const opt: Model = withModel(OPT, ({ model }) => model);
const scheme = schemeOf({});
const rules = (...keep: string[]) => ({ keep, scheme });

/** The keys of each block, joined. */
function kept(model: Model, ...keep: string[]): string[] {
  return Array.from({ length: model.shape.blocks }, (_, i) =>
    [...keptKeys(model, i, rules(...keep))].join(" "),
  );
}

/** The trained model as if its mlp had another width. */
function withMlp(columns: number): Model {
  const linears = llama.linears.map((spec) =>
    spec.key === "down" ? { ...spec, in: columns } : spec,
  );
  return withLinears(linears);
}

function withLinears(linears: Model["linears"]): Model {
  const blockTensors = (i: number) => llama.blockTensors(i);
  const { shape, residual } = llama;
  return { shape, residual, linears, blockTensors, headName: () => "lm_head.weight" } as Model;
}

describe("a pattern", () => {
  it("is a name, or the end of one behind a dot", () => {
    expect(kept(llama, "model.layers.1.mlp.down_proj")).toEqual(["", "down", "", ""]);
    expect(kept(llama, "layers.1.mlp.down_proj.weight")).toEqual(["", "down", "", ""]);
    expect(kept(llama, "down_proj")).toEqual(["down", "down", "down", "down"]);
    expect(kept(llama, "own_proj", "down")).toEqual(["", "", "", ""]);
  });

  it("has stars for any characters, dots included", () => {
    expect(kept(llama, "layers.0.*")).toEqual(["q k v o gate up down", "", "", ""]);
    expect(kept(llama, "*.o_proj", "model.layers.3.*.k_proj")).toEqual(["o", "o", "o", "k o"]);
    expect(kept(llama, "layers.*.mlp.*")).toEqual(Array(4).fill("gate up down"));
    expect(kept(opt, "fc*")).toEqual(Array(opt.shape.blocks).fill("up down"));
    expect(kept(opt, "out_proj")[0]).toBe("o");
  });

  it("is no regular expression", () => {
    expect(kept(llama, "model.layers.[01].*", "d.wn_proj", "(q|k)_proj")).toEqual(["", "", "", ""]);
  });

  it.each([
    ["down_prj", "down_proj"],
    ["*.dwn_proj", "down_proj"],
    ["model.layers.1.mlp.down_prj", "model.layers.1.mlp.down_proj"],
    ["layers.*.self_attn.q_prj", "*.q_proj"],
    ["layer.0.*", "layers.0.*"],
    ["o_projection", "of the model's 28 linears"],
    ["fc1", "model.layers.0.self_attn.q_proj"],
    ["layers.7.mlp.up_proj", "did you mean layers."],
    ["", "names none"],
  ])("that names nothing is refused with the nearest: %j", (pattern, part) => {
    expectAqError(() => checkKeep(llama, rules(pattern)), "AQ_ARG", part);
  });

  it("may name the head, which is never quantized", () => {
    checkKeep(llama, rules("lm_head"));
    expect(kept(llama, "lm_head")).toEqual(["", "", "", ""]);
  });

  it("may not name all there is", () => {
    expectAqError(() => checkKeep(llama, rules("*_proj")), "AQ_ARG", "all linears of all 4 blocks");
    checkKeep(llama, rules("layers.0.*", "layers.1.*", "layers.2.*"));
  });
});

describe("4-bit floats", () => {
  const floats = (name: string, ...keep: string[]) => ({
    keep,
    scheme: schemeOf({ scheme: name }),
  });

  it("keep linears whose rows groups do not divide", () => {
    const odd = withMlp(688);
    expect([...keptKeys(odd, 0, floats("NVFP4"))]).toEqual([]);
    expect([...keptKeys(odd, 2, floats("MXFP4A16"))]).toEqual(["down"]);
    expect([...keptKeys(odd, 0, floats("MXFP4", "q_proj"))]).toEqual(["q", "down"]);
    // Integers have short groups.
    expect([...keptKeys(odd, 0, { keep: [], scheme: schemeOf({ groupSize: 32 }) })]).toEqual([]);
    expect(keepNotes(odd, floats("MXFP4"))).toEqual([
      "down_proj of every block stays as stored: MXFP4 needs rows that groups of 32 divide, and its rows have 688",
    ]);
    expect(keepNotes(odd, floats("NVFP4"))).toEqual([]);
  });

  it("are refused where they fit no linear", () => {
    const linears = llama.linears.map((spec) => ({ ...spec, in: 24 }));
    expectAqError(
      () => checkKeep(withLinears(linears), floats("NVFP4")),
      "AQ_ARG",
      "NVFP4",
      "groups of 16",
    );
  });
});

describe("activations", () => {
  it("stay as they are where kept linears alone read them", () => {
    const of = (...keys: string[]) => [...keptActivations(llama, new Set(keys))];
    expect(of()).toEqual([]);
    expect(of("down")).toEqual(["down"]);
    expect(of("q", "k")).toEqual([]);
    expect(of("q", "k", "v", "o")).toEqual(["norm1", "o"]);
    expect(of("up")).toEqual([]);
    expect([...keptActivations(opt, new Set(["up"]))]).toEqual(["norm2"]);
  });
});

describe("notes", () => {
  it("say how many linears are kept, and what servers make of it", () => {
    expect(keepNotes(llama, rules())).toEqual([]);
    expect(keepNotes(llama, rules("down_proj"))).toEqual([
      "4 of 28 linears stay as stored (--keep down_proj)",
    ]);
    const [, torn] = keepNotes(llama, rules("layers.2.self_attn.v_proj"));
    expect(torn).toContain("q_proj, k_proj, v_proj as one linear");
    expect(keepNotes(opt, rules("fc1"))).toHaveLength(1);
  });
});
