#!/usr/bin/env node
/**
 * Proves that the emulated device reports missing barriers: removes them from the CUDA sources, one at a time, and runs the
 * kernels' replay files under ThreadSanitizer. Every removal must be a reported race or a wrong result.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join, resolve } from "node:path"
import { parseArgs } from "node:util"

const usage = `Removes each barrier of the CUDA sources in turn and expects ThreadSanitizer to notice.

  node scripts/check-races.js [FILE]... [--only K] [--sample N]

Needs npm run build:dev -- --sanitize thread --target selscan-replay and npx tsx scripts/make-replay.ts --ops.

  FILE      sources and headers to try (default: all under native/cuda)
  --only    the K-th barrier of each file alone, counted from 1
  --sample  at most N barriers, spread over all
  --help    this text`

const root = resolve(import.meta.dirname, "..")
const build = join(root, "build-dev", "thread")
const replays = join(root, "build-dev", "replay", "ops")
// What orders the memory of threads. A comment "// redundant: why" on the line leaves one out.
const barrier = /__syncthreads\(\)|__syncwarp\(\)|waitCopies<[^>]*>\(\)/g

/** Each barrier of a file: the text without it, where it was, and the sources whose kernels have it. */
function mutants(file) {
  const text = readFileSync(join(root, file), "utf8")
  const sources = file.endsWith(".cu") ? [file] : sourcesUnder(".cu").filter((source) => includes(source, file))
  return [...text.matchAll(barrier)].flatMap((match) => {
    const line = text.slice(0, match.index).split("\n").length
    if (/\/\/ redundant:/.test(text.split("\n")[line - 1])) return []
    const without = `${text.slice(0, match.index)}(void)0${text.slice(match.index + match[0].length)}`
    return [{ file, line, what: match[0], without, sources }]
  })
}

const sourcesUnder = (extension) =>
  readdirSync(join(root, "native/cuda"))
    .filter((name) => name.endsWith(extension))
    .map((name) => `native/cuda/${name}`)

/** Whether a source includes a header, itself or through others. */
function includes(source, header) {
  const found = readFileSync(join(root, source), "utf8").matchAll(/^#include "(cuda\/[^"]+)"/gm)
  return [...found].map(([, path]) => `native/${path}`).some((path) => path === header || includes(path, header))
}

const objectsUnder = (target) =>
  readdirSync(join(build, "CMakeFiles", `${target}.dir`), { recursive: true })
    .filter((name) => name.endsWith(".o"))
    .map((name) => join(build, "CMakeFiles", `${target}.dir`, name))

/** selscan-replay with one source compiled anew, the mutant in the place of the file it came from. */
function compile({ file, without }, source, folder) {
  const commands = JSON.parse(readFileSync(join(build, "compile_commands.json"), "utf8"))
  const { command } = commands.find((entry) => entry.file === join(root, source))
  const object = join(folder, `${basename(source)}.o`)
  mkdirSync(join(folder, "cuda"), { recursive: true })
  writeFileSync(join(folder, "cuda", basename(file)), without)
  const input = file === source ? join(folder, "cuda", basename(file)) : join(root, source)
  const compiler = command.replace(/ -o \S+ -c \S+$/, ` -w -o ${object} -c ${input}`).replace(" -I", ` -I${folder} -I`)
  execFileSync("sh", ["-c", compiler], { cwd: build, stdio: "pipe" })
  const objects = ["runtime", "kernels-emulated", "runtime-emulated", "selscan-replay"].flatMap(objectsUnder)
  const others = objects.filter((name) => !name.endsWith(`/${basename(source)}.o`))
  const program = join(folder, "selscan-replay")
  execFileSync("g++", ["-fsanitize=thread", ...others, object, "-o", program, "-lpthread", "-ldl"], { stdio: "pipe" })
  return program
}

/** Replay files of the kernels that a source registers. */
function replaysOf(source) {
  const names = [...readFileSync(join(root, source), "utf8").matchAll(/^KERNEL\((\w+),/gm)].map(([, name]) => name)
  const files = existsSync(replays) ? readdirSync(replays) : []
  const found = files.filter((name) => names.includes(name.replace(/[-.].*$/, ""))).map((name) => join(replays, name))
  return found.sort((a, b) => statSync(a).size - statSync(b).size) // small ones first: most mutants show in any
}

/** How a program with a mutant was noticed by its replay files, or undefined. */
function noticed(program, source) {
  const hasSetarch = spawnSync("setarch", ["-R", "true"]).status === 0
  for (const replay of replaysOf(source)) {
    const command = [...(hasSetarch ? ["setarch", "-R"] : []), program, replay, "--device", "emulated"]
    const env = { ...process.env, TSAN_OPTIONS: "atexit_sleep_ms=0" }
    const { status, stdout, stderr } = spawnSync(command[0], command.slice(1), {
      encoding: "utf8",
      timeout: 300_000,
      env,
    })
    if (/WARNING: ThreadSanitizer: data race/.test(stderr)) return `a data race in ${basename(replay)}`
    if (status !== 0) return `${/FAIL/.test(stdout) ? "a wrong result" : `status ${status}`} in ${basename(replay)}`
  }
  return undefined
}

function judge(mutant) {
  for (const source of mutant.sources) {
    const folder = mkdtempSync(join(tmpdir(), "selscan-races-"))
    try {
      const how = noticed(compile(mutant, source, folder), source)
      if (how !== undefined) return how
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }
  return undefined
}

function spread(all, count) {
  if (count === undefined || count >= all.length) return all
  return Array.from({ length: count }, (_, i) => all[Math.floor(((i + 0.5) * all.length) / count)])
}

function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { only: { type: "string" }, sample: { type: "string" }, help: { type: "boolean" } },
  })
  if (values.help) return console.log(usage)
  const files = positionals.length > 0 ? positionals : [...sourcesUnder(".cu"), ...sourcesUnder(".cuh")]
  const all = files.flatMap((file) => {
    const found = mutants(file)
    return values.only ? found.slice(Number(values.only) - 1, Number(values.only)) : found
  })
  let passed = 0
  let failed = 0
  for (const mutant of spread(all, values.sample && Number(values.sample))) {
    const how = judge(mutant)
    how ? passed++ : failed++
    console.log(
      `${how ? "ok  " : "FAIL"} ${mutant.file}:${mutant.line} without ${mutant.what}: ${how ?? "nothing was noticed"}`,
    )
  }
  console.log(`${passed} passed, ${failed} failed`)
  process.exitCode = failed === 0 && passed > 0 ? 0 : 1
}

main()
