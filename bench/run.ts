/**
 * `npm run bench`: runs benchmarks, prints tables, keeps records.
 */
import { appendFileSync, mkdirSync, readdirSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { expect, SelscanError, suggestion } from "../lib/errors.ts"
import { setThreads } from "../lib/native.ts"
import { compare } from "./compare.ts"
import { busyShare, type Circumstances, circumstances } from "./machine.ts"
import type { BenchModule, Measurement } from "./measure.ts"
import { table } from "./table.ts"

const folder = fileURLToPath(new URL(".", import.meta.url))
const recordsOf = (device: "cpu" | "cuda") => fileURLToPath(new URL(`results/${device}.jsonl`, import.meta.url))
const names = readdirSync(folder).flatMap((file) => /^(.+)\.bench\.ts$/.exec(file)?.[1] ?? [])

const load = (name: string) => import(`./${name}.bench.ts`) as Promise<BenchModule>

async function usage(): Promise<string> {
  const lines = await Promise.all(names.map(async (name) => `    ${name.padEnd(10)} ${(await load(name)).summary}`))
  return `Measures this package on this machine.

  npm run bench [-- NAME...] [--record] [--json] [--threads N]
  npm run bench -- compare A B [--gpu]

${lines.join("\n")}

  --record     appends every result to bench/results/cpu.jsonl
  --json       prints one object instead of tables
  --threads N  threads of the addon (default: all usable cores)
  compare      two recorded commits, line by line; with --gpu those of bench/results/cuda.jsonl`
}

function options() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        record: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        threads: { type: "string", default: "0" },
        gpu: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    })
  } catch (cause) {
    throw new SelscanError("BAD_OPTION", `bench: ${(cause as Error).message.split("\n")[0]}; see --help`)
  }
}

/** Beyond this share of the cores in other hands, two threads are no faster than one. */
const busyMax = 0.1

function record(bench: string, where: Circumstances & { busy: number }, results: readonly Measurement[]): void {
  mkdirSync(fileURLToPath(new URL("results/", import.meta.url)), { recursive: true })
  for (const result of results) appendFileSync(recordsOf("cpu"), `${JSON.stringify({ ...where, bench, ...result })}\n`)
}

async function main(): Promise<void> {
  const { values, positionals } = options()
  if (values.help) return console.log(await usage())
  if (positionals[0] === "compare") {
    return console.log(compare(recordsOf(values.gpu ? "cuda" : "cpu"), positionals.slice(1)))
  }
  for (const name of positionals) {
    expect(names.includes(name), "BAD_OPTION", () => `bench: unknown benchmark ${name}, ${suggestion(name, names)}`)
  }
  expect(/^\d{1,4}$/.test(values.threads), "BAD_OPTION", () => `bench: --threads is a number, got ${values.threads}`)
  await setThreads(Number(values.threads))
  const where = circumstances()
  const all: (Measurement & { bench: string })[] = []
  const notes: string[] = []
  for (const name of positionals.length > 0 ? positionals : names) {
    const { summary, run } = await load(name)
    if (!values.json) console.log(`${name}: ${summary}`)
    const busy = Number((await busyShare()).toFixed(3))
    const outcome = await run()
    if (values.record) record(name, { ...where, busy }, outcome.results)
    const own = [...(outcome.notes ?? [])]
    if (busy > busyMax)
      own.push(`other programs used ${(100 * busy).toFixed(0)}% of the cores before ${name} began: measure again`)
    all.push(...outcome.results.map((result) => ({ bench: name, ...result })))
    notes.push(...own)
    if (!values.json) console.log([table(outcome.results), ...own, ""].join("\n"))
  }
  if (values.json) return console.log(JSON.stringify({ ...where, results: all, notes }))
  console.log(`${where.cpu}, ${where.instructionSet}, ${where.threads} threads, commit ${where.commit}, ${where.date}`)
}

main().catch((error: Error) => {
  console.error(error instanceof SelscanError ? error.message : error.stack)
  process.exitCode = error instanceof SelscanError && error.code === "BAD_OPTION" ? 2 : 1
})
