/** A small file system of its own, for tests of full and read-only disks. */
import { spawnSync } from "node:child_process";

/** Why small disks cannot be made here, or null. */
export function noSmallDisks(): string | null {
  if (process.platform !== "linux") return "tmpfs is for Linux";
  if (process.getuid?.() !== 0) return "mounting needs root";
  const { status, stderr } = spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", "/mnt"], {
    encoding: "utf8",
  });
  return status === 0 ? null : `mounting is not permitted here: ${stderr?.trim() || "no unshare"}`;
}

export class SmallDisk {
  readonly dir: string;

  /** Mounts a tmpfs of some KiB on an empty folder. */
  constructor(dir: string, kib: number) {
    this.dir = dir;
    run("mount", "-t", "tmpfs", "-o", `size=${kib}k`, "none", dir);
  }

  resize(kib: number): void {
    run("mount", "-o", `remount,size=${kib}k`, this.dir);
  }

  makeReadOnly(): void {
    run("mount", "-o", "remount,ro", this.dir);
  }

  unmount(): void {
    run("umount", this.dir);
  }
}

function run(command: string, ...args: readonly string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stderr}`);
}
