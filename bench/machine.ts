/**
 * Where and of what a measurement was taken.
 */
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { cpus } from "node:os"
import { setTimeout as delay } from "node:timers/promises"
import { devices } from "../lib/native.ts"

export interface Circumstances {
  readonly date: string
  /** Short hash; `-dirty` when the working tree differs from it. */
  readonly commit: string
  readonly cpu: string
  readonly instructionSet: string
  readonly threads: number
}

const root = new URL("..", import.meta.url)

function git(...words: string[]): string {
  return execFileSync("git", words, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim()
}

/** `d9b73ec` or `d9b73ec-dirty`; in a GPU bundle, the commit that was packed; `unknown` outside of both. */
export function commit(): string {
  const bundle = new URL("bundle.json", root)
  if (existsSync(bundle)) return (JSON.parse(readFileSync(bundle, "utf8")) as { commit: string }).commit
  try {
    // Records of earlier runs do not change what is measured.
    const dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)bench/results") !== ""
    return `${git("rev-parse", "--short=10", "HEAD")}${dirty ? "-dirty" : ""}`
  } catch {
    return "unknown"
  }
}

export function circumstances(): Circumstances {
  const [device] = devices()
  return {
    date: new Date().toISOString(),
    commit: commit(),
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    instructionSet: device!.instructionSet!,
    threads: device!.threads!,
  }
}

/** Share of all cores that others use, over one second in which this process sleeps. */
export async function busyShare(): Promise<number> {
  const sums = () => {
    const times = cpus().map((core) => core.times)
    const idle = times.reduce((total, { idle }) => total + idle, 0)
    return {
      idle,
      all: times.reduce((total, { user, nice, sys, idle, irq }) => total + user + nice + sys + idle + irq, 0),
    }
  }
  const before = sums()
  await delay(1000)
  const after = sums()
  return 1 - (after.idle - before.idle) / Math.max(1, after.all - before.all)
}
