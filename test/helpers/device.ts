// The devices that op tests run on.
import { cudaAddon } from "../../lib/native/cuda.ts";
import { devices as engineDevices } from "../../lib/tensor/device.ts";

/** Devices of this machine, the CPU first. */
export function devices(): readonly string[] {
  cudaAddon();
  return engineDevices();
}
