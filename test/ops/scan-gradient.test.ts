import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { selectiveScanGrad } from "../../lib/ops/selective-scan.ts"
import { declare, run } from "./harness.ts"
import { specs } from "./selective-scan-grad.ts"
import type { OpCase } from "./spec.ts"

const spec = specs[0]!
const given = spec.cases.find(({ title }) => title === "five segments, two without rows, and spare rows")!
const names = Object.keys(selectiveScanGrad.definition.outputs)

function programOf(opCase: OpCase, wanted: readonly string[]) {
  return trace(opCase.title, (tr) => {
    const grads: Record<string, unknown> = selectiveScanGrad(declare(tr, spec, opCase) as never)
    return Object.fromEntries(wanted.map((name) => [name, grads[name] as never]))
  })
}

test("a gradient of the scan that is asked for alone has the bits that it has beside all others", async (t) => {
  const all = await run(programOf(given, names), spec, given)
  for (const name of names) {
    const alone = await run(programOf(given, [name]), spec, given)
    t.deepEqual(alone[name], all[name], `${name} alone`)
  }
})

test("gradients of a segment's rows have the same bits whatever its neighbours are", async (t) => {
  const perRow = ["dx", "ddelta", "dz", "dB", "dC"]
  const both = await run(programOf(given, perRow), spec, given)
  const { segments } = given.inputs
  // All lines but the first become unused, at the place where they were.
  const data = segments!.data.map((value, i) => (i >= 5 && i % 5 === 1 ? segments!.data[i - 1]! : value))
  const first = { ...given, inputs: { ...given.inputs, segments: { ...segments!, data } } }
  const alone = await run(programOf(first, perRow), spec, first)
  const [begin, end] = [segments!.data[0]!, segments!.data[1]!]
  for (const name of perRow) {
    const width = both[name]!.length / given.inputs.x!.shape[0]!
    const rows = (numbers: ArrayLike<number>) => Array.from(numbers).slice(begin * width, end * width)
    t.deepEqual(rows(alone[name]!), rows(both[name]!), name)
    t.true(
      Array.from(alone[name]!)
        .slice(end * width)
        .every((value) => value === 0),
      `${name} is zero in spare rows`,
    )
  }
})
