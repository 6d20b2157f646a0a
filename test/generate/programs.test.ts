import test from "ava"
import { rowsFor, rowsNext } from "../../lib/generate/programs.ts"
import { device } from "../device.ts"
import { fresh, noise } from "./compare.ts"
import { tinyModel } from "./tiny.ts"

/** Rows of the runs that a prompt is cut into. */
function runs(count: number, device: string): number[] {
  const next = rowsNext(count, device)
  return next === count ? [count] : [next, ...runs(count - next, device)]
}

test("a prompt on the cpu is cut where spare rows would cost more than another run", (t) => {
  const cuts = {
    1: [1],
    33: [33],
    64: [64],
    65: [64, 1],
    97: [97],
    150: [128, 22],
    300: [256, 44],
    700: [512, 128, 60],
  }
  for (const [count, expected] of Object.entries(cuts)) t.deepEqual(runs(Number(count), "cpu"), expected)
})

test("on a GPU only what no program holds is cut", (t) => {
  for (const device of ["cuda", "cuda:1", "emulated"]) {
    t.deepEqual(runs(300, device), [300])
    t.deepEqual(runs(1300, device), [512, 512, 276])
  }
})

test("whatever the length, fewer rows are spare than a run costs for each run, and no run is without rows", (t) => {
  for (let count = 1; count <= 2048; count++) {
    const cut = runs(count, "cpu")
    t.is(
      cut.reduce((sum, rows) => sum + rows, 0),
      count,
    )
    t.true(cut.every((rows) => rows >= 1 && rows <= 512))
    const spare = cut.reduce((sum, rows) => sum + rowsFor(rows) - rows, 0)
    t.true(spare < 32 * (Math.log2(rowsFor(count)) + 1), `${count} in ${cut}: ${spare} spare`)
  }
})

test("sessions run their prompts so, and say what one run of them says", async (t) => {
  await using model = await tinyModel()
  const text = noise(150)
  const [step, rows] = [model.step.bind(model), [] as number[]]
  model.step = (kind, count, ...rest) => {
    rows.push(count)
    return step(kind, count, ...rest)
  }
  const said = await fresh(model, text)
  t.is(rows[0], device === "cpu" ? 128 : 256)
  model.step = (kind, count, ...rest) => step(kind, kind === "prompt" ? 256 : count, ...rest)
  t.deepEqual(await fresh(model, text), said)
})
