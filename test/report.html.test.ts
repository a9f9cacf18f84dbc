// report.html: one file that needs nothing else, whatever the run was like.
import { describe, expect, it } from "vitest";
import { renderHtml } from "../lib/report/html.ts";
import { keepHint, outstanding, rankLayers } from "../lib/report/layers.ts";
import { sampleBlock, sampleLayers, sampleReport } from "./helpers/sample-report.ts";

/** Tags in the order of closing; throws where they do not nest. */
function checkNesting(html: string): void {
  const open: string[] = [];
  for (const [tag, slash, name = ""] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)\b[^>]*>/g)) {
    if (name === "meta" || tag.startsWith("<!")) continue;
    if (slash === "") open.push(name);
    else expect(open.pop(), tag).toBe(name);
  }
  expect(open).toEqual([]);
}

const NUMBERS = /NaN|Infinity|undefined|null|\[object/;

describe("the page", () => {
  it("needs no network, no script and no other file", () => {
    const html = renderHtml(sampleReport());
    expect(html).toMatch(/^<!doctype html>\n<html lang="en">/);
    expect(html).not.toMatch(/<script|<link|<img|<iframe|@import|url\(|https?:|src=|href=/i);
    expect(html).toContain("default-src 'none'".replaceAll("'", "&#39;"));
    expect(html).toContain("prefers-color-scheme:dark");
    expect(html).toContain('name="viewport"');
    checkNesting(html);
  });

  it("shows what the run was", () => {
    const html = renderHtml(sampleReport());
    for (const text of [
      "small, W4A4",
      "40.00",
      "50.00",
      "+25.0 %",
      "4.200",
      "3.0e-7",
      "0.900",
      "aq-native quantize --model m --out o",
      "a note",
      "Training loss",
      "Error of the stream",
      "Equivalence",
      "Dominance margin",
      "Time",
    ]) {
      expect(html, text).toContain(text);
    }
    expect(html).not.toContain("Worth a look");
    expect(html).not.toMatch(/>(NaN|undefined|null)</);
  });

  it("says in words what went wrong", () => {
    const blocks = [
      sampleBlock(0, { fallback: "rtn", skippedSteps: 3 }),
      sampleBlock(1, { equivalence: 2e-4 }),
    ];
    const html = renderHtml(sampleReport({ blocks }));
    expect(html).toContain("Worth a look");
    expect(html).toContain("Block 1 could not be trained");
    expect(html).toContain("Block 1: 3 steps skipped");
    expect(html).toContain("Block 2 is not equivalent: 2.0e-4");
  });

  it("escapes every name and sentence", () => {
    const evil = `<img src=x onerror="alert('1')">&`;
    const base = sampleReport();
    const html = renderHtml(
      sampleReport({
        command: evil,
        notes: [evil],
        settings: { [evil]: evil },
        model: { ...base.model, path: `/m/${evil}`, family: evil },
        calibration: { ...base.calibration, text: evil },
        phaseSeconds: { [evil]: 1 },
        curves: [{ title: evil, unit: evil, first: 0, values: [1, 2] }],
      }),
    );
    expect(html).not.toContain("<img");
    checkNesting(html);
  });

  it("shows which layers lose most, and how to leave them", () => {
    const blocks = [0, 1, 2].map((block) =>
      sampleBlock(block, { layers: sampleLayers(block, 0.05, block === 1 ? 0.4 : 0.04) }),
    );
    const html = renderHtml(sampleReport({ blocks }));
    checkNesting(html);
    for (const text of [
      "Error by weights",
      "Error by activations",
      "block 2, down: 40.0 %",
      "1 layer stands out",
      "--keep model.layers.1.mlp.down_proj",
      "model.layers.0.self_attn.q_proj",
      "block 1, q: as it was",
    ]) {
      expect(html, text).toContain(text);
    }
    expect(html.replace(/<style>.*<\/style>/s, "")).not.toMatch(NUMBERS);
    expect(renderHtml(sampleReport())).not.toContain("Error by weights");
  });

  it("is whole where nothing was trained", () => {
    const nothing = {
      lossFirst: null,
      lossLast: null,
      losses: {},
      equivalence: null,
      equivalenceStored: null,
      dominanceMargin: null,
    };
    const html = renderHtml(sampleReport({ blocks: [sampleBlock(0, nothing)] }));
    checkNesting(html);
    expect(html).not.toContain("Training loss");
    expect(html).not.toContain("Equivalence</h3>");
    expect(html.replace(/<style>.*<\/style>/s, "")).not.toMatch(NUMBERS);
  });

  it.each([1, 2, 9, 100])("draws %i blocks inside its plots", (count) => {
    const blocks = Array.from({ length: count }, (_, i) =>
      sampleBlock(i, {
        losses: i === 0 ? { affine: [0.5, Number.NaN, 0.4] } : { affine: [0.1 * i] },
      }),
    );
    const html = renderHtml(sampleReport({ blocks }));
    checkNesting(html);
    const body = html.replace(/<style>.*<\/style>/s, "");
    expect(body).not.toMatch(NUMBERS);
    for (const [, name = "", value] of body.matchAll(/ (x|x1|x2|cx|y|y1|y2|cy)="([^"]+)"/g)) {
      const limit = name.includes("x") ? 420 : 240;
      expect(Number(value), name).toBeGreaterThanOrEqual(0);
      expect(Number(value), name).toBeLessThanOrEqual(limit);
    }
  });
});

describe("layers", () => {
  const blocks = (...down: number[]) =>
    down.map((error, block) => sampleBlock(block, { layers: sampleLayers(block, 0.05, error) }));
  const hint = (...down: number[]) => keepHint(rankLayers(blocks(...down)));

  it("are ranked by both parts of their error together", () => {
    const [first, second] = rankLayers(blocks(0.03, 0.3, 0.06));
    expect(first).toMatchObject({ block: 1, linear: "down", weight: 0.3, activation: 0.3 });
    expect(first?.both).toBeCloseTo(0.3 * Math.SQRT2, 12);
    expect(second).toMatchObject({ block: 2, linear: "down" });
    expect(rankLayers([sampleBlock(0)])).toEqual([]);
  });

  it("are hinted at one by one, or by a pattern where most blocks are alike", () => {
    expect(hint(0.03, 0.3, 0.03)).toEqual(["model.layers.1.mlp.down_proj"]);
    expect(hint(0.3, 0.3, 0.3)).toEqual(["*.mlp.down_proj"]);
    expect(hint(0.03, 0.03, 0.03)).toEqual([]);
    expect(outstanding(rankLayers(blocks(0.3, 0.03, 0.03)))).toHaveLength(1);
    const many = Array.from({ length: 40 }, (_, i) => (i % 3 === 0 ? 0.3 : 0.03));
    expect(hint(...many)).toHaveLength(8);
  });
});
