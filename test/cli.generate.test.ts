/** `generate` and `serve` as commands. */
import { describe, expect, test } from "vitest";
import { run } from "./helpers/fake-api.ts";
import { fakeIo } from "./helpers/fake-io.ts";

describe("generate", () => {
  const LINE = ["generate", "--model", "m", "--prompt", "Once"];

  test("writes the text as it comes, and what it was on the other stream", async () => {
    const { code, stdout, stderr, options } = await run(LINE);
    expect(code).toBe(0);
    expect(stdout).toBe(" a\u001b[2Jb\n");
    expect(stderr).toMatch(/^3 tokens, .* a second: as many as asked for or fit\n$/);
    expect(options).toEqual([{ dir: "m" }, { prompt: "Once" }]);
  });

  test("shows no control characters on a terminal", async () => {
    const io = fakeIo();
    Object.assign(io.stdout, { isTTY: true });
    expect((await run(LINE, {}, io)).stdout).toBe(" a\uFFFD[2Jb\n");
  });

  test("tells pieces and the end as JSON, and hands every option on", async () => {
    const line = [
      ...LINE,
      ...["--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3"],
      ...["--max-length", "40", "--kv", "f16", "--threads", "2", "--json"],
    ];
    const { stdout, options } = await run(line);
    const lines = stdout
      .trim()
      .split("\n")
      .map((text) => JSON.parse(text));
    expect(lines[0]).toEqual({ event: "text", text: " a", id: 3 });
    expect(lines.at(-1)).toMatchObject({ event: "done", finish: "length", tokens: 3 });
    expect(options).toEqual([
      { dir: "m", maxLength: 40, kv: "f16", threads: 2 },
      { prompt: "Once", maxTokens: 5, temperature: 0.5, topP: 0.9, seed: 3 },
    ]);
  });
});

describe("serve", () => {
  test("says where it listens, and ends when it is told to", async () => {
    const { code, stdout, options } = await run(["serve", "--model", "m", "--port", "0"]);
    expect(code).toBe(0);
    expect(stdout).toContain("http://127.0.0.1:1234/v1");
    expect(options).toEqual([{ model: "m", port: 0 }]);
  });
});
