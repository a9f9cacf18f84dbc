import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterAll, afterEach } from "vitest";

/** Makes empty folders that are removed after each test of the file that calls this. */
export function tempFolders(): () => string {
  const made: string[] = [];
  afterEach(() => {
    for (const dir of made.splice(0)) fs.rmSync(dir, { recursive: true, force: true });
  });
  return () => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "aq-native-test-"));
    made.push(dir);
    return dir;
  };
}

/** The same for folders that all tests of a file use; names are for people. */
export function sharedFolders(): (name: string) => string {
  const made: string[] = [];
  afterAll(() => {
    for (const dir of made.splice(0)) fs.rmSync(dir, { recursive: true, force: true });
  });
  return (name) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), `aq-native-test-${name}-`));
    made.push(dir);
    return dir;
  };
}
