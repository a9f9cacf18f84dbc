/** Streams, environment and clock for tests of the command line: what is written is kept. */
import type { Io, OutputStream } from "../../lib/cli/io.ts";

export interface FakeStream extends OutputStream {
  text: string;
  isTTY: boolean;
  columns: number;
}

export interface FakeIo extends Io {
  readonly stdout: FakeStream;
  readonly stderr: FakeStream;
  readonly env: Record<string, string | undefined>;
  /** Moves the clock. */
  advance(ms: number): void;
}

export function fakeIo(terminal: { columns?: number } | undefined = undefined): FakeIo {
  let time = 0;
  return {
    stdout: fakeStream(terminal),
    stderr: fakeStream(terminal),
    env: {},
    now: () => time,
    advance(ms) {
      time += ms;
    },
  };
}

function fakeStream(terminal: { columns?: number } | undefined): FakeStream {
  return {
    text: "",
    isTTY: terminal !== undefined,
    columns: terminal?.columns ?? 80,
    write(text) {
      this.text += text;
      return true;
    },
  };
}

const ESCAPE = "\x1b[";

/** The lines that a wide terminal shows after it has got this text, without their colours. */
export function terminalLines(text: string): string[] {
  const lines = [""];
  let column = 0;
  for (let i = 0; i < text.length; i++) {
    const row = lines.length - 1;
    const line = lines[row] ?? "";
    const character = text[i] ?? "";
    if (text.startsWith(ESCAPE, i)) {
      const rest = text.slice(i + ESCAPE.length);
      const length = rest.search(/[A-Za-z]/);
      if (rest[length] === "K") lines[row] = line.slice(0, column);
      i += ESCAPE.length + length;
    } else if (character === "\r") {
      column = 0;
    } else if (character === "\n") {
      lines.push("");
      column = 0;
    } else {
      lines[row] = line.slice(0, column).padEnd(column) + character + line.slice(column + 1);
      column++;
    }
  }
  return lines;
}
