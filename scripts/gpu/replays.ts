/**
 * Runs every replay file on the device, plainly and under each tool of compute-sanitizer, several at once, in the order in
 * which most is learnt should the time run out. The last line counts; exits with 1 when a file failed, with 3 when all passed
 * plainly and no tool could be run.
 */
import { spawn, spawnSync } from "node:child_process"
import { existsSync, readdirSync } from "node:fs"
import { basename, join } from "node:path"
import { parseArgs } from "node:util"

const tools = ["memcheck", "racecheck", "synccheck"] as const
/** Exit code by which compute-sanitizer tells of an error that it found; selscan-replay's own are 1 and 2. */
const foundError = 86
/** Processes at once: each holds a context of the GPU, and a core or two. */
const atOnce = 4

type Outcome = "passed" | "failed" | "late"

interface Job {
  readonly tool: string
  readonly file: string
}

function options() {
  const { values } = parseArgs({
    options: { quick: { type: "boolean", default: false }, seconds: { type: "string", default: "95" } },
  })
  return { quick: values.quick, deadline: Date.now() + 1000 * Number(values.seconds) }
}

/** Whole steps, then every op; with `quick` the first case of each and its bf16 ones. */
function replayFiles(quick: boolean): string[] {
  const ops = readdirSync("replay/ops").filter((file) => !quick || /^[A-Za-z]+-0[.-]/.test(file))
  const steps = readdirSync("replay").filter((file) => file.endsWith(".ssr"))
  return [...steps.map((file) => join("replay", file)), ...ops.map((file) => join("replay/ops", file))]
}

/** The tool's path, or why there is none. */
function findSanitizer(): { path?: string; missing?: string } {
  const places = [
    process.env.COMPUTE_SANITIZER,
    "compute-sanitizer",
    "/usr/local/cuda/bin/compute-sanitizer",
    "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
    "/opt/cuda/bin/compute-sanitizer",
  ].filter((place) => place !== undefined)
  for (const path of places) {
    const { status } = spawnSync(path, ["--version"], { encoding: "utf8", timeout: 20_000 })
    if (status === 0) return { path }
  }
  return { missing: "compute-sanitizer was not found; COMPUTE_SANITIZER may name it" }
}

const replay = process.env.SELSCAN_REPLAY ?? "./selscan-replay"
const device = process.env.DEVICE ?? "cuda"

/** Runs a command until the deadline; what it printed, and its exit code (undefined when it was stopped). */
function finish(command: string, words: readonly string[], deadline: number): Promise<{ code?: number; text: string }> {
  return new Promise((done) => {
    const child = spawn(command, words, { stdio: ["ignore", "pipe", "pipe"] })
    let text = ""
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (text += part))
    const timer = setTimeout(() => child.kill("SIGKILL"), Math.max(1, deadline - Date.now()))
    child.on("error", (error) => done({ code: 127, text: error.message }))
    child.on("close", (code) => {
      clearTimeout(timer)
      done(code === null && Date.now() >= deadline ? { text } : { code: code ?? 128, text })
    })
  })
}

async function attempt({ tool, file }: Job, sanitizer: string | undefined, deadline: number): Promise<Outcome> {
  if (Date.now() >= deadline) return "late"
  const words = [file, "--device", device]
  const { code, text } =
    tool === "plain"
      ? await finish(replay, words, deadline)
      : await finish(sanitizer!, ["--tool", tool, "--error-exitcode", String(foundError), replay, ...words], deadline)
  if (code === undefined) return "late"
  if (code === 0) return "passed"
  console.log(`FAILED ${tool} ${file}, exit code ${code}\n${text.replace(/^/gm, "    ")}`)
  return "failed"
}

/** A pool of `atOnce`; outcomes by tool. */
async function runAll(jobs: Job[], sanitizer: string | undefined, deadline: number): Promise<Map<string, Outcome[]>> {
  const outcomes = new Map<string, Outcome[]>()
  const work = async () => {
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) {
      const outcome = await attempt(job, sanitizer, deadline)
      console.log(`${outcome.padEnd(7)} ${job.tool.padEnd(10)} ${basename(job.file)}`)
      outcomes.set(job.tool, [...(outcomes.get(job.tool) ?? []), outcome])
    }
  }
  await Promise.all(Array.from({ length: atOnce }, work))
  return outcomes
}

/** Why the tool cannot be used here: it refuses some machines, and that says nothing about the kernels. */
async function refusal(path: string, file: string, deadline: number): Promise<string | undefined> {
  const words = ["--tool", "memcheck", "--error-exitcode", String(foundError), replay, file, "--device", device]
  const { code, text } = await finish(path, words, deadline)
  if (code === 0 || code === foundError || /ERROR SUMMARY: [1-9]/.test(text)) return undefined
  const said = text.split("\n").filter((line) => /error|fail|not supported|unable|denied/i.test(line))
  return `compute-sanitizer does not work here: ${said[0]?.trim() ?? `exit code ${code ?? "none, it was too slow"}`}`
}

async function main(): Promise<void> {
  const { quick, deadline } = options()
  const files = replayFiles(quick)
  const plain = await runAll(
    files.map((file) => ({ tool: "plain", file })),
    undefined,
    deadline,
  )
  const good = (plain.get("plain") ?? []).every((outcome) => outcome === "passed")
  const found = existsSync(replay) ? findSanitizer() : { missing: `${replay} was not found` }
  const smallest = files.find((file) => basename(file).startsWith("scale-0")) ?? files[0]!
  const missing = found.path === undefined || !good ? found.missing : await refusal(found.path, smallest, deadline)
  const jobs = missing === undefined && good ? files.flatMap((file) => tools.map((tool) => ({ tool, file }))) : []
  const checked = await runAll(jobs, found.path, deadline)
  const all = [...plain, ...checked]
  const count = (of: readonly Outcome[], wanted: Outcome) => of.filter((outcome) => outcome === wanted).length
  const parts = all.map(([tool, of]) => {
    const late = count(of, "late") > 0 ? `, ${count(of, "late")} out of time` : ""
    return `${tool}: ${count(of, "passed")} of ${of.length}${late}`
  })
  const failed = all.reduce((total, [, of]) => total + count(of, "failed"), 0)
  const rest = missing === undefined ? "" : `; tools not run: ${missing}`
  console.log(`${failed} failed; ${parts.join("; ")}${rest}`)
  process.exitCode = failed > 0 || !good ? 1 : missing === undefined ? 0 : 3
}

await main()
