/**
 * The native half of the benchmarks: builds selscan-bench (bench/native) once per process and runs it.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { SelscanError } from "../lib/errors.ts"
import { devices } from "../lib/native.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const program = fileURLToPath(new URL("../build-dev/none/selscan-bench", import.meta.url))

let built = false

function build(): void {
  if (built) return
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["scripts/build-dev.js", "--target", "selscan-bench"],
    {
      cwd: root,
      encoding: "utf8",
    },
  )
  if (status !== 0) {
    const last = `${stdout}${stderr}`.trim().split("\n").slice(-15).join("\n")
    throw new SelscanError("NATIVE", `bench: selscan-bench could not be built; see npm run build:dev\n${last}`)
  }
  built = true
}

/** Runs selscan-bench with these words and returns the object it prints. */
export function nativeBench<T>(...words: readonly string[]): T {
  build()
  return JSON.parse(execFileSync(program, words, { encoding: "utf8" })) as T
}

/** What the machine can do at most, measured now. */
export interface Limits {
  readonly threads: number
  readonly readGBps: number
  readonly fmaGFlops: number
}

/** On as many threads as the addon uses in this process. */
export const limits = (): Limits => nativeBench<Limits>("limits", "--threads", String(devices()[0]!.threads))

/**
 * How close a measurement comes to the nearer of the two limits: a kernel is bound by whichever it uses more of.
 * Milliseconds, bytes and operations of one sample.
 */
export function shareOf(
  { readGBps, fmaGFlops }: Limits,
  { milliseconds, bytes, operations = 0 }: { milliseconds: number; bytes: number; operations?: number | undefined },
): { rate: { value: number; unit: string }; share: { value: number; of: string } } {
  const moved = bytes / milliseconds / 1e6
  const computed = operations / milliseconds / 1e6
  return computed / fmaGFlops > moved / readGBps
    ? {
        rate: { value: computed, unit: "GFLOP/s" },
        share: { value: computed / fmaGFlops, of: `${Math.round(fmaGFlops)} GFLOP/s` },
      }
    : {
        rate: { value: moved, unit: "GB/s" },
        share: { value: moved / readGBps, of: `${readGBps.toFixed(1)} GB/s read` },
      }
}
