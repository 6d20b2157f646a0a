/**
 * On which GPU, with which driver and of which commit a measurement was taken.
 */
import { spawnSync } from "node:child_process"
import { type Device, devices, resolveDevice } from "../lib/native.ts"
import { commit } from "./machine.ts"

export interface GpuCircumstances {
  readonly date: string
  readonly commit: string
  readonly gpu: string
  readonly driver: string
}

/** The device asked for by DEVICE, `cuda` unless it names another. Throws NO_DEVICE with what is missing. */
export const device = (): string => resolveDevice((process.env.DEVICE ?? "cuda") as Device)

/** What a device calls itself up to the first comma: "NVIDIA H200". */
const nameOf = (description: string) => description.split(",")[0]!

/** The driver's version where nvidia-smi tells it, else the CUDA version that the device reports. */
function driverOf(description: string): string {
  const { status, stdout } = spawnSync("nvidia-smi", ["--query-gpu=driver_version", "--format=csv,noheader"], {
    encoding: "utf8",
    timeout: 20_000,
  })
  if (status === 0 && stdout.trim() !== "") return stdout.trim().split("\n")[0]!
  return /driver for (CUDA [\d.]+)/.exec(description)?.[1] ?? "unknown"
}

export function gpuCircumstances(name: string): GpuCircumstances {
  const kind = name.replace(/:\d+$/, "")
  const { description } = devices().find((one) => one.name === kind)!
  return {
    date: new Date().toISOString(),
    commit: commit(),
    gpu: nameOf(description),
    driver: kind === "cuda" ? driverOf(description) : "none",
  }
}
