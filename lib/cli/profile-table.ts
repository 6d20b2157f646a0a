/**
 * A profile for people: a table for the prompt, one for decoding, and the limits that they are held to.
 */
import type { LimitName, PartProfile, Profile, ProfileLine } from "../generate/profile.ts"

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
  const others = (["int8", "bf16x3"] as const).flatMap((kind) =>
    limits[kind] === undefined ? [] : `, ${number(limits[kind] / 1e9)} in ${kind}`,
  )
  const several = batch === 1 ? "" : ` of each of ${batch} sequences`
  return [
    "",
    ...partLines(`prompt of ${prefill} tokens${several}`, prompt),
    "",
    ...partLines(`one token${several}`, decode),
    "",
    `limits of this run: ${number(limits.memory / 1e9)} GB/s read, ${number(limits.f32 / 1e9)} GFLOP/s in f32, ${number(limits.bf16 / 1e9)} in bf16${others.join("")}`,
    "of the limit: the nearer one's share; over 100% of memory where tensors stay in a cache",
  ]
}

function partLines(what: string, { seconds, inNodes, lines }: PartProfile): string[] {
  const shown = lines.filter(({ share }) => share >= least)
  const rest = lines.filter(({ share }) => share < least)
  const more = rest.length > 0 ? [restRow(rest)] : []
  const unit = seconds.median >= 1e-3 ? { name: "ms", factor: 1e3 } : { name: "µs", factor: 1e6 }
  const rows = [...shown.map((line) => row(line, unit.factor)), ...more.map((make) => make(unit.factor))]
  const heads = ["op", "nodes", unit.name, "share", "", "MB", "MFLOP", "of the limit"]
  const time = `${number(seconds.median * unit.factor)} ${unit.name}, of which ${number(inNodes.median * unit.factor)} in nodes`
  return [`${what}: ${time}`, ...columns([heads, ...rows])]
}

const row = ({ op, of, nodes, seconds, share, bytes, operations, limit, ofLimit }: ProfileLine, factor: number) => [
  of === undefined ? op : `${op} ${of}`,
  number(nodes),
  number(seconds.median * factor),
  `${(100 * share).toFixed(1)}%`,
  bar(share),
  number(bytes / 1e6),
  operations === 0 ? "" : number(operations / 1e6),
  `${(100 * ofLimit).toFixed(0)}% of ${limitWords[limit]}`,
]

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
