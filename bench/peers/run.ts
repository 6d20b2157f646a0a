/**
 * `npm run bench:peers`: this package and llama.cpp on the same random weights, in turns, in one run.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { expect, SelscanError } from "../../lib/errors.ts"
import { modelPreset } from "../../lib/models/presets.ts"
import { devices } from "../../lib/native.ts"
import { installLlama, llamaVersion, llamaVersionIn, NotInstalled } from "../../scripts/llama.ts"
import { busyShare, circumstances } from "../machine.ts"
import { statistics } from "../measure.ts"
import { formOf, forms, gguf, weights } from "./forms.ts"
import { llama, match, measurements, type Result, tableOf } from "./match.ts"
import { Player, type Settings, type Task } from "./party.ts"
import { draw, record } from "./records.ts"
import { verdicts } from "./targets.ts"

const usage = `Measures selscan and llama.cpp on the same random weights, in turns: who waits is stopped.

  npm run bench:peers [-- OPTIONS]

  --model A,B      published sizes (mamba-130m,mamba-790m)
  --form A,B       ${Object.entries(forms)
    .map(([name, { label }]) => `${name}: ${label}`)
    .join("; ")} (bf16)
  --prefill A,B    tokens of prompts (64,509,512,700,4096); 0 for none
  --decode A,B     sequences that write side by side (1,8); 0 for none
  --tokens N       tokens that each writes (64)
  --repeats N      rounds, after one that is not measured (5)
  --most N         seconds that one task may take in all; it is done once in any case (120)
  --threads N      of each side (all usable cores)
  --isa A,B        ours at these instruction-set levels (the best alone)
  --alone          without llama.cpp
  --cache FOLDER   keeps weights and node-llama-cpp ${llamaVersion} there (a temporary folder, removed at the end)
  --modules FOLDER a node_modules folder that has node-llama-cpp, whichever; nothing is installed then
  --record         appends every result to bench/results/peers.jsonl, and writes the latest of all as peers.md and peers.svg beside it
  --json           prints one object instead of tables

A short run: npm run bench:peers -- --model mamba-130m --prefill 64,512 --tokens 16 --repeats 3`

function options() {
  try {
    return parseArgs({
      options: {
        model: { type: "string", default: "mamba-130m,mamba-790m" },
        form: { type: "string", default: "bf16" },
        prefill: { type: "string", default: "64,509,512,700,4096" },
        decode: { type: "string", default: "1,8" },
        tokens: { type: "string", default: "64" },
        repeats: { type: "string", default: "5" },
        most: { type: "string", default: "120" },
        threads: { type: "string" },
        isa: { type: "string", default: "" },
        alone: { type: "boolean", default: false },
        cache: { type: "string" },
        modules: { type: "string" },
        record: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    }).values
  } catch (cause) {
    throw new SelscanError("BAD_OPTION", `peers: ${(cause as Error).message.split("\n")[0]}; see --help`)
  }
}

type Options = ReturnType<typeof options>

const listed = (text: string): string[] => text.split(",").filter((word) => word !== "")

function whole(name: string, text: string): number {
  expect(/^[1-9]\d{0,6}$/.test(text), "BAD_OPTION", () => `peers: --${name} is a whole number from 1, got ${text}`)
  return Number(text)
}

const wholes = (name: string, text: string): number[] =>
  text === "0" ? [] : listed(text).map((word) => whole(name, word))

function tasksOf({ prefill, decode, tokens }: Options): Task[] {
  const each = whole("tokens", tokens)
  expect(each <= 256, "BAD_OPTION", () => `peers: --tokens is at most 256, got ${each}`) // of theirs' room
  const tasks: Task[] = [
    ...wholes("prefill", prefill).map((tokens) => ({ kind: "prefill" as const, tokens })),
    ...wholes("decode", decode).map((batch) => ({ kind: "decode" as const, tokens: each, batch })),
  ]
  expect(tasks.length > 0, "BAD_OPTION", () => "peers: something to measure is expected, got no prefill and no decode")
  return tasks
}

/** A folder that lasts as long as the process. */
function temporary(): string {
  const folder = mkdtempSync(join(tmpdir(), "selscan-peers-"))
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

interface Arena {
  readonly folder: string
  /** Of llama.cpp, unless ours is alone. */
  readonly modules: string | undefined
  readonly version: string | undefined
  readonly tasks: readonly Task[]
  readonly threads: number
  readonly repeats: number
  readonly most: number
  readonly isa: readonly string[]
}

/** One model in one form; the players are there as long as it takes. */
async function play(arena: Arena, model: string, form: string, tell: Tell) {
  const { folder, modules, version = "", tasks, threads, isa, ...plan } = arena
  const { vocab } = modelPreset(model)
  const chosen = formOf(form)
  tell(`${model}, ${form}: weights`)
  const path = await weights(folder, model)
  const tokensMost = Math.max(64, ...tasks.map((task) => (task.kind === "prefill" ? task.tokens : 0)))
  const batchMost = Math.max(1, ...tasks.map((task) => (task.kind === "decode" ? task.batch : 0)))
  const shared = { threads, vocab, tokensMost, batchMost, version, modules: modules ?? "" }
  const ours: Settings = { ...shared, model: path, load: chosen.ours }
  const players: Player[] = []
  try {
    for (const level of isa.length > 0 ? isa : [undefined]) {
      const name = level === undefined ? "selscan" : `selscan ${level}`
      players.push(await Player.start(name, "ours.ts", ours, level === undefined ? {} : { SELSCAN_ISA: level }))
    }
    if (modules !== undefined) {
      const theirs = { ...shared, model: await gguf(path, chosen), load: {} }
      players.push(await Player.start(llama, "theirs.ts", theirs))
    }
    const about: string[] = []
    for (const player of players) about.push(await player.about())
    const result = await match(players, { model, form, vocab, apart: chosen.apart }, { ...plan, tasks, tell })
    return { result, about }
  } finally {
    for (const player of players) player.end()
  }
}

type Tell = (what: string) => void

const results = fileURLToPath(new URL("../results/", import.meta.url))

async function main(): Promise<void> {
  const given = options()
  if (given.help) return console.log(usage)
  const [models, chosen] = [listed(given.model), listed(given.form)]
  for (const model of models) modelPreset(model)
  for (const form of chosen) formOf(form)
  const tasks = tasksOf(given)
  const [repeats, most] = [whole("repeats", given.repeats), whole("most", given.most)]
  const own = devices().find(({ name }) => name === "cpu")!.threads!
  const threads = given.threads === undefined ? own : whole("threads", given.threads)
  const folder = given.cache ?? temporary()
  process.on("SIGINT", () => process.exit(130))
  const modules = given.alone ? undefined : (given.modules ?? (await installLlama(join(folder, "llama"))))
  const version = modules === undefined ? undefined : await llamaVersionIn(modules)
  const tell: Tell = (what) => void (process.stderr.isTTY && process.stderr.write(`\r\x1b[K${what}`))
  const where = { ...circumstances(), threads, busy: Number((await busyShare()).toFixed(3)), llama: version }
  const arena: Arena = { folder, modules, version, tasks, threads, repeats, most, isa: listed(given.isa) }
  const played: Result[] = []
  for (const model of models) {
    for (const form of chosen) {
      const { result, about } = await play(arena, model, form, tell)
      tell("")
      played.push(result)
      if (given.record) record(results, where, measurements(result))
      if (given.json) continue
      const read = statistics(result.read)
      const memory = `read bandwidth ${(read.median / 1e9).toFixed(1)} GB/s (${(read.min / 1e9).toFixed(1)} – ${(read.max / 1e9).toFixed(1)})`
      console.log(`${model}, ${formOf(form).label}`)
      console.log([...about.map((line) => `  ${line}`), tableOf(result), memory, verdicts(result), ""].join("\n"))
    }
  }
  if (given.record) draw(results, `Times the speed of llama.cpp, ${where.cpu}, ${threads} threads`)
  if (given.json) return console.log(JSON.stringify({ ...where, results: played.flatMap(measurements) }))
  const busy =
    where.busy > 0.1 ? `, others used ${(100 * where.busy).toFixed(0)}% of the cores before: measure again` : ""
  console.log(`${where.cpu}, ${threads} threads, commit ${where.commit}, ${where.date}${busy}`)
}

main().catch((error: Error) => {
  const known = error instanceof SelscanError || error instanceof NotInstalled
  console.error(known ? error.message : error.stack)
  process.exitCode = error instanceof SelscanError && error.code === "BAD_OPTION" ? 2 : 1
})
