#!/usr/bin/env node
/**
 * Compiles every CUDA source for each architecture and holds each kernel to the registers it states above it: none may use more,
 * spill, or keep a stack frame in local memory. "// registers: 64" is for all instances of a template;
 * "// registers: 120 of <32, 1>, 152 of <64, 1>" for those that have these arguments, on as many lines as it takes.
 */
import { execFile, spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import { availableParallelism, tmpdir } from "node:os"
import { basename, join, resolve } from "node:path"
import { parseArgs } from "node:util"

const usage = `Compiles native/cuda/*.cu for sm_80 and sm_90 and checks registers, spills and local memory.

  node scripts/check-cuda.js [FILE.cu]... [--all]

  --all    prints every kernel, not only the fullest of each file
  --help   this text`

const root = resolve(import.meta.dirname, "..")
const manifest = createRequire(import.meta.url)("../native/sources.cjs")
const { findToolkit } = createRequire(import.meta.url)("../native/toolkit.cjs")
const architectures = ["80", "90"]

/** What each kernel of a file and of the headers that it includes states: [registers, arguments of the instances, or ""]. */
function statements(file, seen = new Set()) {
  if (seen.has(file)) return new Map()
  seen.add(file)
  const text = readFileSync(file, "utf8")
  const stated = new Map()
  for (const [, include] of text.matchAll(/^#include "(cuda\/[^"]+\.cuh)"/gm)) {
    for (const [name, limits] of statements(join(root, "native", include), seen)) stated.set(name, limits)
  }
  for (const [, comment, name] of text.matchAll(
    /\/\/ registers: ((?:\d.*\n\/\/ )*\d.*)\n(?:.*\n){0,2}?.*__global__[^;{]*?\bvoid (\w+)\(/g,
  )) {
    const limits = [...comment.matchAll(/(?:^|, |\/\/ )(\d+)(?: of (<[^>]+>))?/g)]
    const parsed = limits.map(([, registers, instances = ""]) => [Number(registers), instances])
    stated.set(name, parsed)
  }
  return stated
}

/** The limit of one instance: that of its arguments, or that of all. */
const limitOf = (limits = [], full) => limits.find(([, instances]) => full.includes(instances))?.[0]

function compile(nvcc, file, architecture, folder) {
  const output = join(folder, `${basename(file)}.${architecture}.cubin`)
  const code = `-arch=sm_${architecture}`
  const flags = ["-cubin", code, "-Inative", "-Xptxas=-v", ...manifest.cuflags, "-o", output, file]
  return new Promise((done, fail) => {
    execFile(nvcc, flags, { cwd: root, maxBuffer: 1 << 28 }, (error, stdout, stderr) =>
      error
        ? fail(new Error(`${file}, sm_${architecture}: does not compile\n${stdout}${stderr}`))
        : done(stdout + stderr),
    )
  })
}

/** What ptxas says: one entry per instance of a kernel. */
function instances(log) {
  const found = []
  for (const part of log.split(/(?=ptxas info {4}: Compiling entry function)/)) {
    const name = /Compiling entry function '([^']+)'/.exec(part)?.[1]
    if (name === undefined) continue
    const number = (pattern) => Number(pattern.exec(part)?.[1] ?? 0)
    found.push({
      name,
      registers: number(/Used (\d+) registers/),
      stack: number(/(\d+) bytes stack frame/),
      spilled: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      shared: number(/(\d+) bytes smem/),
    })
  }
  return found
}

/** Full and short names of mangled ones. */
function demangled(names) {
  if (names.length === 0) return []
  const { stdout } = spawnSync("c++filt", { input: names.join("\n"), encoding: "utf8" })
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => {
      const full = line.replaceAll(/selscan::cuda::|\(anonymous namespace\)::|^void /g, "")
      let depth = 0
      const end = [...full].findIndex((char) => {
        if (char === "<") depth++
        if (char === ">") depth--
        return char === "(" && depth === 0
      })
      const call = end < 0 ? full : full.slice(0, end)
      return { full: call, short: call.replace(/<.*$/s, "").split("::").at(-1).trim() }
    })
}

async function check(nvcc, file, folder) {
  const stated = statements(join(root, file))
  const rows = []
  for (const architecture of architectures) {
    const found = instances(await compile(nvcc, file, architecture, folder))
    const names = demangled(found.map(({ name }) => name))
    for (const [i, instance] of found.entries()) {
      rows.push({ ...instance, ...names[i], architecture, limit: limitOf(stated.get(names[i].short), names[i].full) })
    }
  }
  return rows
}

function judge(file, { full, architecture, registers, stack, spilled, limit }) {
  const where = `${file}: ${full} on sm_${architecture}`
  if (limit === undefined)
    return `${where}: states no registers; write "// registers: N", or "N of <arguments>" for each instance, above the kernel`
  if (registers > limit) return `${where}: states ${limit} registers, uses ${registers}`
  if (spilled > 0) return `${where}: spills ${spilled} bytes`
  if (stack > 0) return `${where}: keeps ${stack} bytes in local memory`
  return undefined
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { all: { type: "boolean" }, help: { type: "boolean" } },
  })
  if (values.help) return console.log(usage)
  const toolkit = findToolkit()
  if (toolkit === undefined)
    throw new Error("nvcc is needed to check the CUDA sources; install the CUDA toolkit or set CUDA_HOME")
  const files = positionals.length > 0 ? positionals : manifest.cu
  const folder = mkdtempSync(join(tmpdir(), "selscan-cuda-"))
  const problems = []
  let kernels = 0
  const waiting = [...files]
  const work = async () => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      const rows = await check(toolkit.nvcc, file, folder)
      kernels += rows.length
      problems.push(...rows.map((row) => judge(file, row)).filter(Boolean))
      const fullest = rows.toSorted((a, b) => b.registers - a.registers)
      for (const { full, architecture, registers, limit } of values.all ? fullest : fullest.slice(0, 1)) {
        console.log(
          `${file.padEnd(44)} sm_${architecture} ${String(registers).padStart(4)} of ${limit ?? "?"}  ${full}`,
        )
      }
    }
  }
  try {
    await Promise.all(Array.from({ length: availableParallelism() }, work))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  for (const problem of problems) console.error(problem)
  console.log(
    `${files.length} files, ${kernels} kernels over ${architectures.length} architectures, ${problems.length} problems`,
  )
  process.exitCode = problems.length === 0 ? 0 : 1
}

main().catch((error) => {
  console.error(`check-cuda: ${error.message}`)
  process.exitCode = 1
})
