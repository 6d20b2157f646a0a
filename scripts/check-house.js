#!/usr/bin/env node
/**
 * Holds the house to its rules: no room imports one above it, files stay small, and each room within its budget of lines,
 * so that growth is a decision.
 */
import { readdirSync, readFileSync } from "node:fs"
import { dirname, join, resolve } from "node:path"

const root = resolve(import.meta.dirname, "..")

/** Height of each room of lib/: imports go downward. What stands below native.ts loads without the addon. */
const heights = {
  "binaries.cjs": 0, // of native/: CommonJS, for bundlers
  "errors.ts": 0,
  "plot.ts": 0,
  "trial.ts": 0,
  "addon.ts": 1,
  graph: 1,
  ops: 2,
  layers: 3,
  models: 4,
  "native.ts": 5,
  checkpoint: 6,
  hub: 7,
  text: 7,
  generate: 8,
  train: 9,
  cli: 10,
  "index.ts": 11,
}

/** Lines per room. Raise one in the commit that needs it, and say there why. */
const budgets = {
  "lib/graph": 1200,
  "lib/ops": 1700,
  "lib/layers": 1200,
  "lib/models": 1200,
  "lib/checkpoint": 5700, // pipes, devices and keys that collide are refused; pieces are read ahead; 8 bits
  "lib/generate": 4000, // bursts; a profile with what every op costs
  "lib/hub": 1300,
  "lib/text": 1200,
  "lib/train": 1300, // a profile of a step
  "lib/cli": 1800, // a training step by op
  lib: 1000, // several steps as one run
  "native/core": 2000, // several steps as one run
  "native/cpu": 8500, // 8 bits; cores; the scan of one row; products packed once, or of three; selections
  "native/ops": 900,
  "native/cuda": 9300,
  "native/emulated": 2400,
  native: 1200,
  test: 28700,
  scripts: 3900,
  bench: 4700, // peers
}
// import x from "./y", export * from "./y", import "./y", import("./y")
const importPattern = /(?:^(?:import|export) (?:type )?(?:[^"';]*? from )?|\bimport\()["'](\.[^"']+)["']/gm
const linesMax = (file) => (file.endsWith(".cu") ? 500 : 400)

const problems = []
const totals = Object.fromEntries(Object.keys(budgets).map((room) => [room, 0]))

const sources = ["lib", "native", "test", "scripts", "bench"]
  .flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true }).map((file) => join(folder, file).replaceAll("\\", "/")),
  )
  .filter((file) => /\.(ts|js|cjs|cpp|h|cu|cuh)$/.test(file))
  .sort()

for (const file of sources) {
  const text = readFileSync(join(root, file), "utf8")
  const lines = text.split("\n").length - 1
  if (lines > linesMax(file))
    problems.push(`${file}: has ${lines} lines, at most ${linesMax(file)} are allowed; divide it by ideas`)
  const room = Object.keys(totals).find((name) => file.startsWith(`${name}/`))
  totals[room] += lines
  if (file.startsWith("lib/")) checkImports(file, text)
}

function checkImports(file, text) {
  const room = file.split("/")[1]
  if (heights[room] === undefined) problems.push(`${file}: its room ${room} has no height in scripts/check-house.js`)
  for (const [, path] of text.matchAll(importPattern)) {
    const target = join(dirname(file), path).replaceAll("\\", "/")
    const [, other, ...rest] = target.split("/")
    if (other === room && rest.length > 0) continue
    if (!(heights[room] > heights[other]))
      problems.push(`${file}: imports ${target}, but ${room} does not stand above ${other}`)
  }
}

for (const [room, total] of Object.entries(totals)) {
  const budget = budgets[room]
  console.log(`${room.padEnd(16)} ${String(total).padStart(6)} of ${budget} lines`)
  if (total > budget)
    problems.push(`${room}: has ${total} lines, its budget is ${budget}; take some away, or raise the budget`)
}
for (const problem of problems) console.error(problem)
console.log(`${sources.length} files, ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
