// Limits and layering, checked and not hoped for: who may import whom, who may include whom, how long
// a file may be, and that the three lists of ops agree.
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { opInfo, opNames } from "../lib/tensor/invoke.ts";
import { packageRoot } from "../lib/util/package.ts";

const root = packageRoot();
const MAX_LINES = 350;

function read(file: string): string {
  return readFileSync(path.join(root, file), "utf8");
}

/** Files below a folder, relative to the package, that end in one of the extensions. */
function files(folder: string, extensions: RegExp): string[] {
  const entries = readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && extensions.test(entry.name))
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
    .filter((file) => !/(^|\/)(build|node_modules|fixtures)\//.test(file));
}

// ---------------------------------------------------------------- imports of lib and bin

/** Files directly in lib, but for the errors and types that everyone uses, are the API. */
const API_ROW = 6;

/** A file may import from its own row and from lower ones. */
const ROWS: Readonly<Record<string, number>> = {
  errors: 0,
  types: 0,
  "export-types": 0,
  "inspect-types": 0,
  util: 0,
  native: 1,
  tensor: 1,
  autograd: 2,
  models: 3,
  quant: 3,
  affine: 3,
  data: 3,
  checkpoint: 3,
  packed: 3,
  eval: 4,
  export: 4,
  verify: 4,
  formats: 4,
  report: 4,
  generate: 5,
  calibration: 5,
  serve: 6,
  doctor: 6,
  estimate: 6,
  cli: 7,
  bin: 8,
};

/** Folder of lib that a file belongs to; the name itself of a file directly in lib. */
function unitOf(file: string): string {
  const [top, second = ""] = file.split("/");
  return top === "bin" ? "bin" : second.replace(/\.ts$/, "");
}

function rowOf(file: string): number {
  const isApi = /^lib\/[^/]+\.ts$/.test(file);
  const row = ROWS[unitOf(file)] ?? (isApi ? API_ROW : undefined);
  if (row === undefined) throw new Error(`${file} is in no row: add '${unitOf(file)}' to ROWS`);
  return row;
}

const sources = [...files("lib", /\.ts$/), ...files("bin", /\.ts$/)];

const imports = new Map(
  sources.map((file) => {
    const found = read(file).matchAll(/(?:\bfrom|\bimport)\s*\(?\s*"(\.[^"]+)"/g);
    const targets = [...found].map(([, target = ""]) => path.join(path.dirname(file), target));
    return [file, targets] as const;
  }),
);

describe("imports", () => {
  it("never point to a higher row", () => {
    const breaches = [...imports].flatMap(([file, targets]) =>
      targets.filter((target) => rowOf(target) > rowOf(file)).map((to) => `${file} -> ${to}`),
    );
    expect(breaches).toEqual([]);
  });

  it("have no cycles", () => {
    const done = new Set<string>();
    const visit = (file: string, above: readonly string[]): void => {
      if (above.includes(file)) {
        throw new Error(`a cycle: ${[...above.slice(above.indexOf(file)), file].join(" -> ")}`);
      }
      if (done.has(file)) return;
      for (const target of imports.get(file) ?? []) visit(target, [...above, file]);
      done.add(file);
    };
    for (const file of sources) visit(file, []);
  });

  it("name files that exist", () => {
    const known = new Set(sources);
    const missing = [...imports].flatMap(([file, targets]) =>
      targets.filter((target) => !known.has(target)).map((to) => `${file} -> ${to}`),
    );
    expect(missing).toEqual([]);
  });
});

// ---------------------------------------------------------------- includes of native

/** Which folders of native a folder may include from, besides itself. */
const NATIVE: Readonly<Record<string, readonly string[]>> = {
  abi: [],
  core: ["abi"],
  cpu: ["abi"],
  cuda: ["abi"],
  napi: ["core", "abi"],
  tools: ["abi", "core", "cpu", "cuda"],
};

/** What joins the engine with its CPU backend: one file registers it, one sets its threads. */
const JOINTS = ["native/napi/addon.cc", "native/napi/device_api.cc"];

const nativeFiles = files("native", /\.(h|cc|cu|cuh|inc)$/);
const includes = nativeFiles.flatMap((file) =>
  [...read(file).matchAll(/^\s*#\s*include\s*[<"]([^>"]+)[>"]/gm)].map(
    ([, target = ""]) => [file, target] as const,
  ),
);

const say = (list: readonly (readonly [string, string])[]) =>
  list.map(([file, target]) => `${file} includes ${target}`);

describe("includes", () => {
  it("follow napi -> core -> abi, cpu -> abi, cuda -> abi", () => {
    const breaches = includes.filter(([file, target]) => {
      const [, from = ""] = file.split("/");
      const [top, to = ""] = target.split("/");
      if (top !== "native" || to === from) return false;
      if (JOINTS.includes(file) && to === "cpu") return false;
      return !NATIVE[from]?.includes(to);
    });
    expect(say(breaches)).toEqual([]);
  });

  it("keep Node out of everything but the bindings", () => {
    const breaches = includes.filter(([file, target]) => {
      if (target === "napi.h") return file !== "native/napi/napi_setup.h";
      if (target === "node_api.h") return file !== "native/cuda/addon.cc";
      return target === "uv.h" || target === "v8.h" || target === "node.h";
    });
    expect(say(breaches)).toEqual([]);
  });

  it("keep CUDA out of everything but its backend", () => {
    const breaches = includes.filter(
      ([file, target]) =>
        /^(cuda|cublas|nccl|mma\.h|cooperative_groups)/.test(target) &&
        !file.startsWith("native/cuda/"),
    );
    expect(say(breaches)).toEqual([]);
  });

  it("are absent from the CPU kernels, which are compiled once per SIMD level", () => {
    const breaches = includes.filter(([file]) => file.startsWith("native/cpu/kernels/"));
    expect(say(breaches)).toEqual([]);
  });
});

// ---------------------------------------------------------------- length

describe("files", () => {
  it(`have at most ${MAX_LINES} lines`, () => {
    const code = ["lib", "bin", "native", "test", "bench", "scripts"].flatMap((folder) =>
      files(folder, /\.(ts|mjs|h|cc|c|cu|cuh|inc)$/),
    );
    const long = code
      .map((file) => ({ file, lines: read(file).split("\n").length - 1 }))
      .filter(({ lines }) => lines > MAX_LINES);
    expect(long).toEqual([]);
  });
});

// ---------------------------------------------------------------- lists of ops

interface Declared {
  readonly name: string;
  readonly fields: readonly string[];
}

const params = ["params", "operand_params"].map((name) => read(`native/abi/${name}.h`)).join("\n");
const structs: readonly Declared[] = [
  ...params.matchAll(/typedef struct \{([^}]*)\} aq_(\w+)_params;/g),
].map(([, body = "", name = ""]) => ({
  name,
  fields: body
    .replace(/\/\/.*$/gm, "")
    .split(";")
    .flatMap((line) =>
      line
        .trim()
        .replace(/^(double|int32_t)\s+/, "")
        .split(","),
    )
    .map((field) => field.trim())
    .filter((field) => field !== "" && !/^pad(\[\d+\])?$/.test(field)),
}));

/** Names of an argument list: "w T[O,I], r T[O]?, c!" gives w, r, c. */
function argumentNames(list: string): string[] {
  const flat = list.replace(/\[[^\]]*\]|\([^)]*\)|[{}]|\/\//g, "");
  return flat
    .split(",")
    .map((argument) => /^\s*(\w+)/.exec(argument)?.[1] ?? "")
    .filter((name) => name !== "");
}

describe("the lists of ops", () => {
  it("of params.h and of the registry agree, parameters included", () => {
    expect(structs.map(({ name }) => name).sort()).toEqual(opNames().sort());
    for (const { name, fields } of structs) {
      const known = opInfo(name).params.map((param) => param.name);
      expect(known.sort(), name).toEqual([...fields].sort());
    }
  });

  it("of the comments in params.h name the inputs of the registry", () => {
    for (const { name } of structs) {
      const comment = new RegExp(`^// ${name}\\(([\\s\\S]*?)\\)\\s*(?://\\s*)?->`, "m").exec(
        params,
      );
      expect(comment, `params.h explains ${name}`).not.toBeNull();
      const names = opInfo(name).inputs.map((given) => given.name);
      expect(argumentNames(comment?.[1] ?? ""), name).toEqual(names);
    }
  });

  it("of the CPU backend is complete", () => {
    const rows = [
      ...read("native/cpu/kernels/table.h").matchAll(/^\s*AQ_(?:SHORT_)?ROW(?:_AS)?\((\w+)/gm),
    ];
    expect(rows.map(([, name = ""]) => name).sort()).toEqual(opNames().sort());
  });

  it("of kernel_check, the driver without Node, is complete", () => {
    const cases = files("native/tools", /^kernel_cases_\w+\.h$/).flatMap((file) => [
      ...read(file).matchAll(/^ {6}\{"(\w+)",/gm),
    ]);
    expect(cases.map(([, name = ""]) => name).sort()).toEqual(opNames().sort());
  });
});
