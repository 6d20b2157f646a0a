/** Prints by how much loading and running a model raises the memory that this process has in RAM at most: { loaded, ran } in bytes. */
import { readFileSync } from "node:fs"
import { load } from "../../lib/generate/load.ts"

/** The largest so far. */
function peak(): number {
  const line = readFileSync("/proc/self/status", "utf8").match(/^VmHWM:\s*(\d+) kB$/m)
  return Number(line![1]) * 1024
}

await (await load("demo", { device: "cpu" })).dispose() // code and the addon are there
const before = peak()
await using model = await load(process.argv[2]!, { device: "cpu", sessions: 1 })
const loaded = peak() - before
using session = model.session()
await session.append(Array.from({ length: 64 }, (_, i) => i))
for await (const _ of session.tokens(undefined, { maxTokens: 2, temperature: 0, seed: 0 }));
console.log(JSON.stringify({ loaded, ran: peak() - before }))
