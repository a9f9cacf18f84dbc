/** Looks at the machine and says whether the package can work on it, and if not, what to do. */

import { checkCompute, checkCpuAddon, checkCudaAddon, checkGpuDriver } from "./doctor/addons.ts";
import type { DoctorCheck } from "./doctor/check.ts";
import { checkMemory, checkNode, checkProcessor, checkSystem } from "./doctor/machine.ts";
import { packageRoot, packageVersion } from "./util/package.ts";

export type { DoctorCheck } from "./doctor/check.ts";

export interface DoctorResult {
  readonly version: string;
  /** Folder of the package. */
  readonly root: string;
  /** No check found a problem. */
  readonly usable: boolean;
  readonly checks: readonly DoctorCheck[];
}

/** Never throws for what it finds: every failure is a check with the reason and the way out. */
export function doctor(): DoctorResult {
  const addon = checkCpuAddon();
  const isLoaded = addon.status === "ok";
  const driver = checkGpuDriver();
  const checks = [
    checkNode(),
    checkSystem(),
    checkProcessor(),
    checkMemory(),
    addon,
    ...(isLoaded ? [checkCompute()] : []),
    driver,
    ...(isLoaded ? [checkCudaAddon(driver.status === "ok")] : []),
  ];
  return {
    version: packageVersion(),
    root: packageRoot(),
    usable: checks.every(({ status }) => status !== "problem"),
    checks,
  };
}
