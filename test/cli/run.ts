/** The command line as its users have it: a process with its output and exit code. */
import { type SpawnOptions, spawn } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

/** What Node is given before the words, whatever folder it is in. */
export const viaTsx = [`--import=${import.meta.resolve("tsx")}`, fileURLToPath(new URL("./entry.ts", import.meta.url))]

export interface Outcome {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

/** Runs `selscan` with these words; `whenRunning` is called when it writes. */
export async function selscan(
  args: readonly string[],
  options: SpawnOptions & { input?: string | Uint8Array; whenRunning?: (pid: number) => void } = {},
): Promise<Outcome> {
  const { input, whenRunning, ...rest } = options
  const child = spawn(process.execPath, [...viaTsx, ...args], { ...rest, stdio: ["pipe", "pipe", "pipe"] })
  let [out, err] = ["", ""]
  child.stdout!.on("data", (data: Buffer) => {
    out += data.toString()
    whenRunning?.(child.pid!)
  })
  child.stderr!.on("data", (data: Buffer) => {
    err += data.toString()
  })
  child.stdin!.on("error", () => {}) // a command that reads no input may end before it is written
  child.stdin!.end(input ?? "")
  const [code] = (await once(child, "close")) as [number | null]
  return { code, out, err }
}

/** Outcomes of several commands, two at a time. */
export async function each<T>(all: readonly T[], run: (one: T) => Promise<void>): Promise<void> {
  const rest = [...all]
  const worker = async () => {
    for (let one = rest.shift(); one !== undefined; one = rest.shift()) await run(one)
  }
  await Promise.all([worker(), worker()])
}
