// Many clients at once, some of whom leave in the middle: every answer is whole, and nothing stays behind.
// AQ_SOAK_SECONDS says for how long; a few seconds by default.
import { setTimeout } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { load, serve } from "../lib/index.ts";
import { memory } from "../lib/tensor/device.ts";
import { liveTensors } from "../lib/tensor/tensor.ts";
import { createRandom, type Random } from "../lib/util/random.ts";
import { TRAINED } from "./helpers/fixture.ts";

const SECONDS = Number(process.env["AQ_SOAK_SECONDS"] ?? 4);
const CLIENTS = 32;
const PROMPTS = ["It was the best of times", "Call me", "The old man looked at", "In 1812"];
const LENGTHS = [1, 7, 20, 48];
/** One client in three goes away before its answer has ended. */
const LEAVERS = 1 / 3;
const MOST_PATIENCE_MS = 40;
/** What a process may grow by while its heap and the allocator settle. */
const SLACK_BYTES = 96 * 2 ** 20;

/** What each prompt is written on with, to each length, as one text alone. */
async function expected(): Promise<string[][]> {
  const model = await load(TRAINED, { device: "cpu", maxLength: 128 });
  const write = async (prompt: string, maxTokens: number): Promise<string> => {
    let text = "";
    for await (const piece of model.generate(prompt, { maxTokens })) text += piece.text;
    return text;
  };
  const all: string[][] = [];
  for (const prompt of PROMPTS) {
    const texts: string[] = [];
    for (const length of LENGTHS) texts.push(await write(prompt, length));
    all.push(texts);
  }
  await model.dispose();
  return all;
}

interface Tally {
  whole: number;
  left: number;
}

describe(`${CLIENTS} clients at once for ${SECONDS} s`, () => {
  it(
    "get whole answers or leave, and leave nothing behind",
    async () => {
      const texts = await expected();
      const server = await serve({ model: TRAINED, device: "cpu", port: 0, maxLength: 128 });
      const health = async (): Promise<{ active: number; waiting: number }> => {
        const response = await fetch(`${server.url}/health`);
        return (await response.json()) as { active: number; waiting: number };
      };
      const tally: Tally = { whole: 0, left: 0 };

      const ask = async (random: Random): Promise<void> => {
        const pick = <T>(all: readonly T[]): T => all[random.below(all.length)] as T;
        const which = pick([...PROMPTS.keys()]);
        const length = pick([...LENGTHS.keys()]);
        const gone = new AbortController();
        const body = JSON.stringify({
          prompt: PROMPTS[which],
          max_tokens: LENGTHS[length],
          temperature: 0,
          stream: random.unit() > 0.5,
        });
        const leaves = random.unit() < LEAVERS;
        const after = MOST_PATIENCE_MS * random.unit();
        const leaving = leaves ? setTimeout(after).then(() => gone.abort()) : undefined;
        try {
          const response = await fetch(`${server.url}/v1/completions`, {
            method: "POST",
            body,
            signal: gone.signal,
          });
          expect(response.status).toBe(200);
          const answer = textOf(await response.text());
          expect(answer).toBe(texts[which]?.[length]);
          tally.whole++;
        } catch (error) {
          if (!gone.signal.aborted) throw error;
          tally.left++;
        }
        await leaving;
      };

      const run = async (seconds: number, seed: number): Promise<void> => {
        const end = performance.now() + 1e3 * seconds;
        const client = async (_: unknown, i: number): Promise<void> => {
          const random = createRandom(CLIENTS * seed + i);
          while (performance.now() < end) await ask(random);
        };
        await Promise.all(Array.from({ length: CLIENTS }, client));
        while ((await health()).active > 0) await setTimeout(5);
      };

      await run(SECONDS / 4, 0);
      const before = {
        tensors: liveTensors(),
        bytes: memory("cpu").usedBytes,
        rss: process.memoryUsage.rss(),
      };
      await run(SECONDS, 1);
      expect(await health()).toMatchObject({ status: "ok", waiting: 0, active: 0 });
      expect(liveTensors()).toBe(before.tensors);
      expect(memory("cpu").usedBytes).toBe(before.bytes);
      expect(process.memoryUsage.rss() - before.rss).toBeLessThan(SLACK_BYTES);
      expect(tally.whole).toBeGreaterThan(CLIENTS);
      expect(tally.left).toBeGreaterThan(0);
      await server.close();
      if (process.env["AQ_SOAK_SECONDS"]) console.log(tally, before, process.memoryUsage.rss());
    },
    1e3 * (2 * SECONDS + 60),
  );
});

/** The text of a whole answer or of an event stream. */
function textOf(body: string): string {
  if (!body.startsWith("data: ")) return JSON.parse(body).choices[0].text;
  const lines = body.split("\n\n").filter((line) => line !== "");
  expect(lines.at(-1)).toBe("data: [DONE]");
  return lines
    .slice(0, -1)
    .map((line) => JSON.parse(line.slice("data: ".length)).choices[0].text)
    .join("");
}
