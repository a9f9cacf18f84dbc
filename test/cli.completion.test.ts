/** The completion scripts: every command and option is in them, and real shells complete with them. */
import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { readCommands } from "../lib/cli/completion-model.ts";
import { buildProgram, main } from "../lib/cli/main.ts";
import { fakeIo } from "./helpers/fake-io.ts";

async function script(shell: string): Promise<string> {
  const io = fakeIo();
  const load = () => Promise.reject(new Error("the package is not needed for this"));
  expect(await main(["completion", shell], io, load)).toBe(0);
  expect(io.stderr.text).toBe("");
  return io.stdout.text;
}

const program = buildProgram(fakeIo(), () => Promise.reject(new Error("not called")));

function has(shell: string): boolean {
  return spawnSync(shell, ["-c", "exit 0"]).status === 0;
}

/** What bash offers for a line whose last word is being typed. */
function bashOffers(text: string, ...words: string[]): string[] {
  const line = words.map((word) => `'${word}'`).join(" ");
  const commands = `${text}\nCOMP_WORDS=(aq-native ${line}); COMP_CWORD=${words.length}
_aq_native; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr } = spawnSync("bash", ["-c", commands], { encoding: "utf8" });
  expect(stderr).toBe("");
  return stdout.split("\n").filter((word) => word !== "");
}

describe("a completion script", () => {
  it.each(["bash", "zsh", "fish"])("of %s names every command and option", async (shell) => {
    const text = await script(shell);
    for (const command of readCommands(program)) {
      expect(text).toContain(command.name);
      for (const { names } of command.options) {
        for (const name of names) {
          const spelled =
            shell === "fish" ? name.replace(/^--/, "-l ").replace(/^-(?=\w$)/, "-s ") : name;
          expect(text, `${command.name} ${name}`).toContain(spelled);
        }
      }
    }
  });

  it.runIf(has("bash"))("completes commands, options and values in bash", async () => {
    const text = await script("bash");
    expect(bashOffers(text, "qu")).toEqual(["quantize"]);
    expect(bashOffers(text, "quantize", "--wb")).toEqual(["--wbits"]);
    expect(bashOffers(text, "quantize", "--recipe", "lw")).toEqual(["lwc-only"]);
    expect(bashOffers(text, "quantize", "--scheme", "NV")).toEqual(["NVFP4", "NVFP4A16"]);
    expect(bashOffers(text, "estimate", "--scheme", "W8")).toEqual(["W8A8"]);
    expect(bashOffers(text, "quantize", "--keep", "")).toEqual([]);
    expect(bashOffers(text, "quantize", "--wbits", "")).toEqual([]);
    expect(bashOffers(text, "completion", "f")).toEqual(["fish"]);
    expect(bashOffers(text, "help", "insp")).toEqual(["inspect"]);
    expect(bashOffers(text, "quantize", "--model", "/us")).toEqual(["/usr"]);
  });

  it.runIf(has("fish"))("completes in fish", async () => {
    const text = await script("fish");
    const offers = (line: string): string[] => {
      const commands = `${text}\ncomplete -C '${line}'`;
      const { stdout } = spawnSync("fish", ["--no-config", "-c", commands], { encoding: "utf8" });
      return stdout.split("\n").flatMap((row) => row.split("\t")[0] || []);
    };
    expect(offers("aq-native qu")).toEqual(["quantize"]);
    expect(offers("aq-native quantize --group")).toEqual(["--group-size"]);
    expect(offers("aq-native quantize --sampling r")).toEqual(["random"]);
  });

  it("lets zsh offer what may be given again", async () => {
    expect(await script("zsh")).toContain("'*--keep[");
  });

  it.runIf(has("zsh"))("is one that zsh can read", async () => {
    const run = spawnSync("zsh", ["-n"], { input: await script("zsh"), encoding: "utf8" });
    expect(run.stderr).toBe("");
    expect(run.status).toBe(0);
  });

  it("exists for three shells, and a misspelt one is wrong use", async () => {
    const io = fakeIo();
    expect(await main(["completion", "bush"], io, () => Promise.reject(new Error("no")))).toBe(2);
    expect(io.stderr.text).toContain("Did you mean bash?");
    expect(io.stderr.text).toContain("See aq-native completion --help.");
  });
});
