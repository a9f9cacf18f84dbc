/** Where the bytes of exported tensors lie, found without the package's own code, and a bit of them flipped. */
import * as fs from "node:fs";
import * as path from "node:path";

/** Bytes of one tensor. */
export interface Place {
  readonly tensor: string;
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
}

/** Every part of a packed linear in the safetensors files of a folder. */
export function tensorPlaces(dir: string): Place[] {
  const part = /(qweight|qzeros|scales|g_idx|weight_\w+|\.codes|\.scale|\.zero|_proj\.weight)$/;
  return fs
    .readdirSync(dir)
    .filter((name) => name.endsWith(".safetensors"))
    .flatMap((name) => {
      const file = path.join(dir, name);
      const bytes = fs.readFileSync(file);
      const start = 8 + Number(bytes.readBigUInt64LE(0));
      const header = JSON.parse(bytes.toString("utf8", 8, start)) as Record<
        string,
        { data_offsets: [number, number] }
      >;
      return Object.entries(header)
        .filter(([tensor]) => part.test(tensor))
        .map(
          ([
            tensor,
            {
              data_offsets: [begin, end],
            },
          ]) => ({
            tensor,
            file,
            offset: start + begin,
            bytes: end - begin,
          }),
        );
    });
}

/** The end of a GGUF file, where the blocks' tensors lie behind the embedding. */
export function ggufPlaces(dir: string): Place[] {
  const file = path.join(dir, "model.gguf");
  const { size } = fs.statSync(file);
  const bytes = Math.floor(size / 8);
  return [{ tensor: "data", file, offset: size - bytes, bytes }];
}

/** Changes one bit of a file; the result changes it back. */
export function flip(file: string, at: number, bit: number): () => void {
  const change = (): void => {
    const fd = fs.openSync(file, "r+");
    try {
      const byte = Buffer.alloc(1);
      fs.readSync(fd, byte, 0, 1, at);
      byte[0] = (byte[0] as number) ^ (1 << bit);
      fs.writeSync(fd, byte, 0, 1, at);
    } finally {
      fs.closeSync(fd);
    }
  };
  change();
  return change;
}
