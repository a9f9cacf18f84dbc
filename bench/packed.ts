// Products with packed matrices on the CPU, as decoding multiplies: every call takes another matrix, of
// more than four times what the last cache holds, beside a plain read of memory and our own product
// with the dense f32 matrix, all in turns, so that whatever else the machine does meets all of them.
import { readFileSync } from "node:fs";
import { FLOAT4_FORMATS } from "../lib/autograd/float4.ts";
import { invoke, invokeOne } from "../lib/tensor/invoke.ts";
import { keep, scope } from "../lib/tensor/scope.ts";
import { Tensor } from "../lib/tensor/tensor.ts";
import { Draw } from "../test/helpers/random.ts";
import { toTensor } from "../test/helpers/run-op.ts";
import { type Bench, isWanted, printRow, summarize, timeOnce } from "./harness.ts";

export const PACKED_ROW = "packed";

/** [O, I] of down, and of gate and up of a 7B model. */
const SHAPES = [
  [4096, 11008],
  [11008, 4096],
] as const;
const ROWS = [1, 16, 512] as const;
const GROUP = 128;
const ROUNDS = 9;
const READ_BYTES = 256e6;
const WIDTHS = [-22, -14, 5, 10, 9, 9, 12];

/** Bytes of the last level's cache; 32 MiB where the system does not say. */
function lastCache(): number {
  for (const level of [4, 3, 2]) {
    try {
      const file = `/sys/devices/system/cpu/cpu0/cache/index${level}/size`;
      const [, size, unit] = /^(\d+)([KM])/.exec(readFileSync(file, "utf8")) ?? [];
      if (size) return Number(size) * (unit === "M" ? 2 ** 20 : 2 ** 10);
    } catch {
      // Another level may be there.
    }
  }
  return 32 * 2 ** 20;
}

/** A product of x [M, I] with one of several matrices. */
interface Kind {
  readonly name: string;
  /** Bytes that one product must read of its matrix. */
  readonly bytes: number;
  readonly copies: number;
  run(x: Tensor, copy: number): void;
  dispose(): void;
}

function bytesOf(tensors: readonly Tensor[]): number {
  const size: Record<string, number> = { u8: 1, f16: 2, f32: 4 };
  return tensors.reduce((sum, { size: count, dtype }) => sum + count * (size[dtype] ?? 0), 0);
}

type Shape = readonly [number, number];
type Packing = (codes: Tensor, shape: Shape) => readonly Tensor[];
type Product = (x: Tensor, packed: readonly Tensor[], outputs: number) => Tensor;

/** As many copies as keep every cache from holding one until its turn comes again. */
function kind(name: string, shape: Shape, levels: number, pack: Packing, product: Product): Kind {
  const codes = Uint8Array.from({ length: shape[0] * shape[1] }, (_, i) => (i * 2654435761) >>> 7);
  for (let i = 0; i < codes.length; i++) codes[i] = (codes[i] as number) % levels;
  const given = Tensor.from(codes, [...shape], "u8");
  const make = () => scope(() => pack(given, shape).map((tensor) => keep(tensor)));
  const matrices = [make()];
  const bytes = bytesOf(matrices[0] as Tensor[]);
  while (matrices.length * bytes <= 4 * lastCache()) matrices.push(make());
  given.dispose();
  return {
    name,
    bytes,
    copies: matrices.length,
    run: (x, copy) => scope(() => void product(x, matrices[copy] as Tensor[], shape[0])),
    dispose: () => {
      for (const tensor of matrices.flat()) tensor.dispose();
    },
  };
}

function integers(name: string, order: 4 | 8, xBits: 0 | 4 | 8, shape: Shape): Kind {
  const draw = new Draw(order, "f32", true);
  const pack: Packing = (codes, [rows, columns]) => {
    const scales = toTensor(draw.uniform([rows, columns / GROUP], 0.001, 0.002), {
      device: "cpu",
      dtype: "f32",
    });
    const zeros = Tensor.empty([rows, columns / GROUP], "f32");
    invoke("fill", [zeros], { value: 2 ** (order - 1) });
    return invoke(`int${order}_pack`, [codes, scales, zeros], { group: GROUP });
  };
  return kind(name, shape, 2 ** order, pack, (x, packed, outputs) => {
    const grid = xBits
      ? invoke("quant_grid", [x], {
          bits: xBits,
          group: 0,
          symmetric: 0,
          floor: 2 ** -14,
          rule: 0,
          round_f16: 0,
        })
      : [];
    const inputs = [x, ...packed, undefined, ...grid];
    const params = { outputs, group: GROUP, x_bits: xBits };
    return order === 4
      ? invokeOne("int4_matmul", inputs, { ...params, wide: 0 })
      : invokeOne("int8_matmul", inputs, params);
  });
}

function floats(name: string, shape: Shape): Kind {
  const format = FLOAT4_FORMATS.nvfp4;
  const pack: Packing = (codes, [rows, columns]) => {
    const scales = Tensor.empty([rows, columns / 16], "f32");
    invoke("fill", [scales], { value: 0.5 });
    return invoke("fp4_pack", [codes, scales], { format });
  };
  return kind(name, shape, 16, pack, (x, packed, outputs) =>
    invokeOne("fp4_matmul", [x, ...packed], { outputs, format, tokens: 0 }),
  );
}

/** Our product with the matrix as numbers; one is larger than the cache. */
function dense(shape: Shape): Kind {
  const w = keep(
    toTensor(new Draw(1, "f32", true).normal([...shape], 0.02), { device: "cpu", dtype: "f32" }),
  );
  const params = { trans_a: 0, trans_b: 1, a_bits: 0, a_group: 0, b_bits: 0, b_group: 0 };
  return {
    name: "dense f32",
    bytes: bytesOf([w]),
    copies: 1,
    run: (x) =>
      scope(() => void invoke("fake_quant_gemm", [x, w], { ...params, accumulate: 0, bf16: 0 })),
    dispose: () => w.dispose(),
  };
}

/** Prints a row per product: time, rate of its matrix, share of a read, and how many times the dense one's rate. */
export function benchPacked({ device, filters, save }: Bench): void {
  if (!isWanted(filters, PACKED_ROW) || device !== "cpu") return;
  process.stdout.write(
    `\npacked matrices, ${Math.round((4 * lastCache()) / 1e6)} MB of them in turns; medians of ${ROUNDS} rounds\n`,
  );
  printRow(["product", "[O, I]", "M", "ms", "GB/s", "of read", "dense/this"], WIDTHS);
  const block = keep(Tensor.empty([READ_BYTES / 4], "f32"));
  invoke("fill", [block], { value: 1 });
  const read = () => scope(() => void invoke("all_finite", [block]));
  read();
  for (const shape of SHAPES) {
    const kinds = [
      dense(shape),
      integers("int4_matmul", 4, 0, shape),
      integers("int4_matmul, x 8 bits", 4, 8, shape),
      integers("int4_matmul, x 4 bits", 4, 4, shape),
      integers("int8_matmul", 8, 0, shape),
      integers("int8_matmul, x 8 bits", 8, 8, shape),
      floats("fp4_matmul", shape),
    ];
    for (const m of ROWS) benchRows(kinds, shape, m, read, save);
    for (const { dispose } of kinds) dispose();
  }
  block.dispose();
}

function benchRows(
  kinds: readonly Kind[],
  shape: Shape,
  m: number,
  read: () => void,
  save: Bench["save"],
): void {
  const x = toTensor(new Draw(m, "f32", true).normal([m, shape[1]]), {
    device: "cpu",
    dtype: "f32",
  });
  const seconds = kinds.map((): number[] => []);
  const reads: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const readSeconds = timeOnce(read);
    if (round > 0) reads.push(readSeconds);
    for (const [k, { run, copies }] of kinds.entries()) {
      // All copies once, so that none is left in a cache; of many rows one call is enough.
      const calls = m > 16 ? 1 : copies;
      const taken = timeOnce(() => {
        for (let c = 0; c < calls; c++) run(x, (round * calls + c) % copies);
      });
      if (round > 0) seconds[k]?.push(taken / calls);
    }
  }
  x.dispose();
  const rate = READ_BYTES / summarize(reads).median;
  const denseSeconds = summarize(seconds[0] ?? []).median;
  for (const [k, { name, bytes }] of kinds.entries()) {
    const { median } = summarize(seconds[k] ?? []);
    const share = bytes / median / rate;
    printRow(
      [
        name,
        shape.join(" x "),
        `${m}`,
        (median * 1e3).toFixed(2),
        (bytes / median / 1e9).toFixed(1),
        `${(share * 100).toFixed(0)} %`,
        (denseSeconds / median).toFixed(2),
      ],
      WIDTHS,
    );
    save({ op: PACKED_ROW, name, shape, m, seconds: median, bytes, share, read: rate });
  }
  printRow(["plain read", "", "", "", (rate / 1e9).toFixed(1)], WIDTHS);
}
