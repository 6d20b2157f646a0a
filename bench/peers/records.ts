/**
 * What was recorded beside llama.cpp: results/peers.jsonl, with a table and a plot of the latest ratio of every shape in it.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { Measurement, Statistics } from "../measure.ts"
import { digits } from "../table.ts"
import { llama, times } from "./match.ts"
import { type Dot, ratioPlot } from "./plot.ts"

/** Appends measurements, with what they have in common, to the records in a folder. */
export function record(folder: string, where: object, all: readonly Measurement[]): void {
  mkdirSync(folder, { recursive: true })
  for (const one of all)
    appendFileSync(join(folder, "peers.jsonl"), `${JSON.stringify({ ...where, bench: "peers", ...one })}\n`)
}

/** Writes the latest ratio of every shape of the records in a folder as a table, peers.md, and as a plot, peers.svg; nothing where there is none. */
export function draw(folder: string, title: string): void {
  const ratios = latestRatios(join(folder, "peers.jsonl"))
  if (ratios.length === 0) return
  const dots = ratios.map(({ name, own, other, commit, ...over }): Dot => {
    return { name, ...over, note: `${times(over.median)}   ${digits(own)} to ${digits(other)} tokens/s` }
  })
  writeFileSync(join(folder, "peers.svg"), ratioPlot(title, dots))
  const rows = ratios.map(({ name, own, other, median, min, max, commit }) => {
    const over = `${times(median)}${median < 1 ? " LOSS" : ""}`
    return `| ${[name, digits(own), digits(other), over, `${times(min)} – ${times(max)}`, commit].join(" | ")} |`
  })
  const head = ["", "selscan, tokens/s", `${llama}, tokens/s`, `over ${llama}`, "min – max", "commit"]
  const table = [`| ${head.join(" | ")} |`, `|${"---|".repeat(head.length)}`, ...rows]
  const text = [`# ${title}`, "Made by `npm run bench:peers -- --record` from `peers.jsonl`.", table.join("\n"), ""]
  writeFileSync(join(folder, "peers.md"), text.join("\n\n"))
}

interface Ratio extends Statistics {
  /** `mamba-130m, bf16: prefill 64` */
  readonly name: string
  /** Tokens per second of ours and of llama.cpp. */
  readonly own: number
  readonly other: number
  readonly commit: string
}

function latestRatios(file: string): Ratio[] {
  const lines = existsSync(file) ? readFileSync(file, "utf8").trim().split("\n") : []
  type Record = Measurement & { readonly commit: string }
  const latest = new Map(lines.map((line) => JSON.parse(line) as Record).map((one) => [one.shape, one]))
  const shape = new RegExp(`^(.*), ([^,]+) over ${llama.replace(".", "\\.")}$`) // mamba-130m, bf16: prefill 64, selscan over llama.cpp
  return [...latest.values()].flatMap(({ shape: whole, median, min, max, commit }): Ratio[] => {
    const [, name, ours] = shape.exec(whole) ?? []
    if (name === undefined) return []
    const [own, other] = [ours, llama].map((player) => latest.get(`${name}, ${player}`)!.rate!.value)
    return [{ name, own: own!, other: other!, median, min, max, commit }]
  })
}
