import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { fold, patchRows } from "../../lib/ops/patches.ts"
import { device } from "../device.ts"

/** A run of patchRows over patches of 2 by 3. */
async function spread(lines: readonly number[], given: { x: boolean; carried: boolean }) {
  await using store = new Store(device)
  const count = lines.length / 5
  const program = trace("patches", (t) => {
    const x = given.x ? t.input("x", "f32", [count, 6]) : undefined
    const carried = given.carried ? t.state("carried", "f32", [3, 6]) : undefined
    return { y: patchRows({ x, segments: t.input("segments", "i32", [count, 5]), carried }, { rows: 4, patch: 2 }).y }
  })
  const executable = await store.compile(program)
  return await executable.run({
    segments: Int32Array.from(lines),
    ...(given.x && { x: new Float32Array(count * 6) }),
  })
}

test("segments that leave their patch, or begin one without its row, are refused", async (t) => {
  const both = { x: true, carried: true }
  await t.throwsAsync(spread([0, 4, 0, 0, 0], both), { code: "BAD_INPUT", message: /at position 3 at most, got 4/ })
  await t.throwsAsync(spread([0, 1, 3, 1, 2], both), { code: "BAD_INPUT", message: /got 4 in segment 0/ })
  await t.throwsAsync(spread([0, 1, 0, 1, 2], { x: false, carried: true }), { code: "BAD_INPUT", message: /got no x/ })
  await t.throwsAsync(spread([0, 1, 0, 3, 0], both), { code: "BAD_INPUT", message: /slot in \[0, 3\)/ })
  await t.throwsAsync(spread([0, 1, 0, 0, 1, 1, 2, 0, 0, 1], both), { code: "BAD_INPUT", message: /written once/ })
  await t.notThrowsAsync(spread([0, 3, 0, 0, 1, 3, 3, 0, 0, 0], both))
})

test("a position far beyond the patch is refused, not computed", async (t) => {
  await t.throwsAsync(spread([0, 1, 2 ** 31 - 2, 1, 2], { x: false, carried: true }), { code: "BAD_INPUT" })
})

test("patches that do not fit are refused while tracing", (t) => {
  const traced = (
    fn: (x: import("../../lib/graph/value.ts").Value, s: import("../../lib/graph/value.ts").Value) => object,
  ) =>
    trace("refused", (tr) => {
      fn(tr.input("x", "f32", [2, 6]), tr.input("segments", "i32", [2, 5]))
      return {}
    })
  t.throws(() => traced((x, segments) => patchRows({ x, segments }, { rows: 3, patch: 4 })), { code: "BAD_SHAPE" })
  t.throws(() => traced((x, segments) => patchRows({ x, segments }, { rows: 0, patch: 2 })), { code: "BAD_OPTION" })
  t.throws(() => traced((x, segments) => patchRows({ x, segments }, { rows: 2 ** 40, patch: 2 })), {
    code: "BAD_OPTION",
    message: /rows is a whole number from 1 to 2147483647, got 1099511627776/,
  })
  t.throws(() => traced((_, segments) => patchRows({ segments }, { rows: 3, patch: 2 })), {
    code: "BAD_INPUT",
    message: /x or carried is given/,
  })
  t.throws(() => traced((x) => fold({ x }, { width: 5 })), {
    code: "BAD_OPTION",
    message: /divides the 2·6 elements, got 5/,
  })
})
