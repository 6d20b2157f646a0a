/**
 * Two recorded commits beside each other.
 */
import { existsSync, readFileSync } from "node:fs"
import { expect, SelscanError } from "../lib/errors.ts"
import type { Circumstances } from "./machine.ts"
import type { Measurement } from "./measure.ts"
import { aligned, digits } from "./table.ts"

/** Records of a GPU name it and the dtype, those of the cpu its instruction set and threads. */
type Line = Circumstances & Measurement & { readonly bench: string; readonly gpu?: string; readonly dtype?: string }

/** Lines are comparable when all of this is the same. */
const keyOf = ({ bench, shape, unit, cpu, instructionSet, threads, gpu, dtype }: Line) =>
  JSON.stringify([bench, shape, unit, cpu, instructionSet, threads, gpu, dtype])

function linesOf(path: string): Line[] {
  expect(
    existsSync(path),
    "NOT_FOUND",
    () => `compare: nothing is recorded in ${path}; run npm run bench -- --record first`,
  )
  return readFileSync(path, "utf8")
    .split("\n")
    .flatMap((line, i) => (line === "" ? [] : [parsed(line, `${path}:${i + 1}`)]))
}

function parsed(line: string, where: string): Line {
  try {
    return JSON.parse(line) as Line
  } catch (cause) {
    throw new SelscanError("BAD_FILE", `${where}: a line of JSON is expected, got ${line.slice(0, 40)}`, {}, { cause })
  }
}

/** The latest line of every key that was recorded of one commit, given by the beginning of its hash. */
function recorded(lines: readonly Line[], commit: string): Map<string, Line> {
  const own = lines.filter((line) => line.commit === commit || line.commit.startsWith(commit))
  const commits = [...new Set(own.map((line) => line.commit))]
  const known = () => [...new Set(lines.map((line) => line.commit))].join(", ")
  expect(own.length > 0, "BAD_OPTION", () => `compare: no record of commit ${commit}; recorded are ${known()}`)
  const exact = own.filter((line) => line.commit === commit)
  expect(
    exact.length > 0 || commits.length === 1,
    "BAD_OPTION",
    () => `compare: ${commit} is one commit, got ${commits.join(" and ")}; give more of the hash`,
  )
  return new Map((exact.length > 0 ? exact : own).map((line) => [keyOf(line), line]))
}

/** A table of medians of A and B, and B over A where both were recorded on the same machine in the same way. */
export function compare(path: string, commits: readonly string[]): string {
  expect(commits.length === 2, "BAD_OPTION", () => `compare: two commits are expected, got ${commits.length}`)
  const lines = linesOf(path)
  const [a, b] = [recorded(lines, commits[0]!), recorded(lines, commits[1]!)]
  const both = [...a].flatMap(([key, left]) => (b.has(key) ? [[left, b.get(key)!] as const] : []))
  expect(
    both.length > 0,
    "BAD_OPTION",
    () =>
      "compare: the two have no measurement in common; machine, instruction set, threads, dtype and shape must agree",
  )
  const rows = both.map(([left, right]) => [
    `${left.bench}: ${left.shape}`,
    digits(left.median),
    digits(right.median),
    left.unit,
    `${(right.median / left.median).toFixed(2)}×`,
    overlap(left, right) ? "within the spread" : "",
  ])
  const alone = a.size + b.size - 2 * both.length
  return [
    aligned(["", commits[0]!, commits[1]!, "unit", "ratio", ""], rows, [1, 2, 4]),
    ...(alone > 0 ? [`${alone} lines were recorded of one of them alone`] : []),
    "Runs at different times: a ratio counts when it is outside the spread, and best when a second pair of runs repeats it.",
  ].join("\n")
}

const overlap = (a: Line, b: Line) => a.min <= b.max && b.min <= a.max
