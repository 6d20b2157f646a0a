import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { concat, gatherRows, scatterRows, split } from "../../lib/ops/columns.ts"
import { broadcast } from "../../lib/ops/reduce.ts"
import { device } from "../device.ts"

test("widths that do not fit are refused when tracing", (t) => {
  trace("widths", (tr) => {
    const x = tr.input("x", "f32", [2, 5])
    for (const first of [0, 5, -1, 1.5]) {
      t.throws(() => split({ x }, { first }), {
        code: "BAD_OPTION",
        message: /split: first is a whole number in \[1, 5\)/,
      })
    }
    t.throws(() => concat({}, { first: 1, second: 1 }), { code: "BAD_INPUT", message: /got neither/ })
    t.throws(() => concat({ a: x }, { first: 4, second: 1 }), { code: "BAD_OPTION", message: /first is .*5, got 4/ })
    t.throws(() => concat({ b: x }, { first: 0, second: 5 }), { code: "BAD_OPTION", message: /first is/ })
    t.throws(() => concat({ a: x, b: tr.input("z", "f32", [3, 1]) }, { first: 5, second: 1 }), { code: "BAD_SHAPE" })
    t.throws(() => broadcast({ x: tr.input("s", "f32", []) }, { rows: 0 }), { code: "BAD_OPTION" })
    const index = tr.input("index", "i32", [2])
    t.throws(() => scatterRows({ dy: x, index }, { rows: 2.5 }), { code: "BAD_OPTION" })
    return { y: concat({ a: x }, { first: 5, second: 2 }).y }
  })
  t.pass()
})

test("rows that do not exist are refused", async (t) => {
  await using store = new Store(device)
  const gather = await store.compile(
    trace("gather", (tr) => gatherRows({ x: tr.input("x", "f32", [3, 2]), index: tr.input("index", "i32", [2]) })),
  )
  const scatter = await store.compile(
    trace("scatter", (tr) =>
      scatterRows({ dy: tr.input("dy", "f32", [2, 2]), index: tr.input("index", "i32", [2]) }, { rows: 3 }),
    ),
  )
  for (const row of [3, -2, 2 ** 31 - 1, -(2 ** 31)]) {
    const refusal = { code: "BAD_INPUT", message: new RegExp(`index is a row in \\[0, 3\\) or -1, got ${row} at 1`) }
    const index = Int32Array.of(0, row)
    await t.throwsAsync(gather.run({ x: new Float32Array(6), index }), refusal)
    await t.throwsAsync(scatter.run({ dy: new Float32Array(4), index }), refusal)
  }
  const { dx } = await scatter.run({ dy: Float32Array.of(1, 2, 3, 4), index: Int32Array.of(2, 2) })
  t.deepEqual(dx, Float32Array.of(0, 0, 0, 0, 4, 6))
})
