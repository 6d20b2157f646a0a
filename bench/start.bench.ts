/**
 * Starting: from the start of a process to the first character that `selscan generate` writes of the demo model, and loading a checkpoint
 * of 260 MB that the system has in its caches. Processes run what `npm run prepare` has compiled.
 */
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { load } from "../lib/generate/load.ts"
import { randomModel } from "../lib/generate/random-weights.ts"
import { type Measurement, type Outcome, statistics } from "./measure.ts"

export const summary = "the first character of the demo model, and loading a checkpoint of 260 MB"

const rounds = 9
const root = new URL("../", import.meta.url)
const command = fileURLToPath(new URL("bin/selscan.js", root))
const targets = { first: 300, load: 1000 }

/** Milliseconds until a process writes its first character. */
async function firstCharacter(args: readonly string[]): Promise<number> {
  const began = performance.now()
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
  let first: number | undefined
  child.stdout.on("data", () => {
    first ??= performance.now() - began
  })
  const [code] = await new Promise<[number | null]>((resolve) => child.on("close", (...ended) => resolve([ended[0]])))
  if (code !== 0 || first === undefined)
    throw new Error(`bench: a process that writes was expected, it ended as ${code}`)
  return first
}

/** Node alone takes turns with the command: what is above it is ours. */
async function starts(): Promise<Measurement[]> {
  const commands = {
    "node, a character": ["-e", "process.stdout.write('x')"],
    "selscan generate, demo": [command, "generate", "In the beginning", "--max-tokens", "20", "--seed", "1"],
  }
  const samples = Object.fromEntries(Object.keys(commands).map((name): [string, number[]] => [name, []]))
  for (let round = 0; round <= rounds; round++) {
    for (const [name, args] of Object.entries(commands)) {
      const first = await firstCharacter(args)
      if (round > 0) samples[name]!.push(first) // files are in the caches of the system, and the addon is known to load
    }
  }
  return Object.entries(samples).map(([name, all]) => ({ shape: `start: ${name}`, unit: "ms", ...statistics(all) }))
}

async function loading(): Promise<Measurement> {
  const folder = await mkdtemp(join(tmpdir(), "selscan-bench-"))
  try {
    {
      await using model = await randomModel("mamba-130m", "bf16", { sessions: 2 })
      await model.save(join(folder, "model"))
    }
    const samples: number[] = []
    for (let round = 0; round <= rounds; round++) {
      const began = performance.now()
      await using model = await load(join(folder, "model"), { sessions: 2 })
      if (round > 0) samples.push(performance.now() - began)
      void model
    }
    const spread = statistics(samples)
    const bytes = 260e6
    const rate = { value: bytes / spread.median / 1e6, unit: "GB/s" }
    return { shape: "load: mamba-130m, bf16", unit: "ms", ...spread, bytes, rate }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

export async function run(): Promise<Outcome> {
  const built = existsSync(new URL("dist/cli/main.js", root))
  const results = [...(built ? await starts() : []), await loading()]
  const notes = [`targets: the first character within ${targets.first} ms, the checkpoint within ${targets.load} ms`]
  if (!built) notes.push("starts were left out: dist is missing; npm run prepare")
  return { results, notes }
}
