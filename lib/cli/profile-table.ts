/**
 * A profile for people: a table for the prompt and one for decoding, or for each part of a training step, and the limits that they are
 * held to.
 */
import type { LimitName, Limits, Spread } from "../generate/limits.ts"
import type { ProfileLine } from "../generate/node-times.ts"
import type { PartProfile, Profile } from "../generate/profile.ts"
import type { TrainingProfile } from "../train/profile.ts"
import { stepParts } from "../train/program.ts"

/** What was profiled. */
export interface ProfiledSizes {
  readonly prefill: number
  readonly batch: number
}

/** Lines that are shorter than this share of their part are summed up. */
const least = 0.002

const limitWords: Readonly<Record<LimitName, string>> = {
  memory: "memory",
  f32: "f32 products",
  bf16: "bf16 products",
  int8: "int8 products",
  bf16x3: "bf16x3 products",
}

export function profileLines({ prefill, batch }: ProfiledSizes, { limits, prompt, decode }: Profile): string[] {
  const several = batch === 1 ? "" : ` of each of ${batch} sequences`
  return [
    "",
    ...partLines(`prompt of ${prefill} tokens${several}`, prompt),
    "",
    ...partLines(`one token${several}`, decode),
    "",
    ...limitLines(limits),
  ]
}

/** What was profiled of a training step. */
export interface TrainedSizes {
  readonly batch: number
  readonly length: number
}

export function trainingLines({ batch, length }: TrainedSizes, profile: TrainingProfile): string[] {
  const { limits, seconds, inNodes, products } = profile
  const whole = timeOf(`training step of ${batch} × ${length} tokens`, seconds, inNodes)
  const parts = stepParts.flatMap((name) => {
    const { inNodes, lines } = profile[name]
    const unit = unitOf(inNodes)
    return ["", `${name}: ${number(inNodes.median * unit.factor)} ${unit.name}`, ...tableOf(lines, unit)]
  })
  const reached = `products with matrices: ${number(products.seconds * 1e3)} ms, ${percent(products.ofLimit)} of the limit`
  return ["", whole, ...parts, "", reached, ...limitLines(limits)]
}

function limitLines(limits: Limits): string[] {
  const { memory, f32, bf16 } = limits
  const others = (["int8", "bf16x3"] as const).flatMap((kind) =>
    limits[kind] === undefined ? [] : `, ${number(limits[kind] / 1e9)} in ${kind}`,
  )
  return [
    `limits of this run: ${number(memory / 1e9)} GB/s read, ${number(f32 / 1e9)} GFLOP/s in f32, ${number(bf16 / 1e9)} in bf16${others.join("")}`,
    "of the limit: the nearer one's share; over 100% of memory where tensors stay in a cache",
  ]
}

interface Unit {
  readonly name: string
  readonly factor: number
}

const unitOf = ({ median }: Spread): Unit =>
  median >= 1e-3 ? { name: "ms", factor: 1e3 } : { name: "µs", factor: 1e6 }

function timeOf(what: string, seconds: Spread, inNodes: Spread): string {
  const { name, factor } = unitOf(seconds)
  return `${what}: ${number(seconds.median * factor)} ${name}, of which ${number(inNodes.median * factor)} in nodes`
}

const partLines = (what: string, { seconds, inNodes, lines }: PartProfile): string[] => [
  timeOf(what, seconds, inNodes),
  ...tableOf(lines, unitOf(seconds)),
]

function tableOf(lines: readonly ProfileLine[], unit: Unit): string[] {
  const shown = lines.filter(({ share }) => share >= least)
  const rest = lines.filter(({ share }) => share < least)
  const more = rest.length > 0 ? [restRow(rest)] : []
  const rows = [...shown.map((line) => row(line, unit.factor)), ...more.map((make) => make(unit.factor))]
  return columns([["op", "nodes", unit.name, "share", "", "MB", "MFLOP", "of the limit"], ...rows])
}

const row = ({ op, of, nodes, seconds, share, bytes, operations, limit, ofLimit }: ProfileLine, factor: number) => [
  of === undefined ? op : `${op} ${of}`,
  number(nodes),
  number(seconds.median * factor),
  `${(100 * share).toFixed(1)}%`,
  bar(share),
  number(bytes / 1e6),
  operations === 0 ? "" : number(operations / 1e6),
  `${percent(ofLimit)} of ${limitWords[limit]}`,
]

const percent = (share: number) => `${(100 * share).toFixed(0)}%`

function restRow(lines: readonly ProfileLine[]) {
  const sum = (of: (line: ProfileLine) => number) => lines.reduce((total, line) => total + of(line), 0)
  const [nodes, seconds] = [sum((line) => line.nodes), sum((line) => line.seconds.median)]
  const [share, bytes] = [sum((line) => line.share), sum((line) => line.bytes)]
  return (factor: number) => [
    `${lines.length} more`,
    number(nodes),
    number(seconds * factor),
    `${(100 * share).toFixed(1)}%`,
    bar(share),
    number(bytes / 1e6),
    "",
    "",
  ]
}

const eighths = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
const barWidth = 16

/** A share of 1 is 16 columns, in eighths of one. */
function bar(share: number): string {
  const parts = Math.round(8 * barWidth * share)
  return "█".repeat(parts >> 3) + eighths[parts & 7]!
}

/** Three digits. */
function number(value: number): string {
  if (value === 0) return "0"
  const decimals = 2 - Math.floor(Math.log10(Math.abs(value)))
  return value
    .toFixed(Math.min(3, Math.max(0, decimals)))
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "")
}

/** Columns as wide as they need; all but the first, the bars and the last end at the right. */
function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)))
  const left = new Set([0, 4, 7])
  const cell = (text: string, i: number) => (left.has(i) ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))
  return rows.map((row) => `  ${row.map(cell).join("  ")}`.trimEnd())
}
