/**
 * The ways in which a GPU divides the work of attention: by rows alone or by key blocks as well, in tiles of many rows
 * or of few. Shapes choose among them, and bits must not tell which it was.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { ringCapacity, slidingAttention } from "../../lib/ops/attention.ts"
import { device } from "../device.ts"
import { normal } from "./spec.ts"

// 270 rows of 14 kv heads fill a GPU without a split, 210, 59 and 1 do not. The last rows see keys of two blocks of 256.
const length = 270
const sizes = { heads: 14, kvHeads: 14, headDim: 4, window: 70 }
const columns = 3 * sizes.heads * sizes.headDim
const sequence = Float32Array.from(normal([length, columns], 1).data)
const ringShape = [2, sizes.kvHeads, ringCapacity(sizes.window, length), sizes.headDim]

/** y and the bits of lse of the whole sequence, run in parts that end at the given rows. */
async function runUpTo(ends: readonly number[], precision: "f32" | "bf16") {
  await using store = new Store(device)
  const parts: { y: Float32Array; lse: Float32Array }[] = []
  for (const [i, end] of ends.entries()) {
    const begin = ends[i - 1] ?? 0
    const program = trace(`${end - begin} rows`, (tr) => {
      const qkv = tr.input("qkv", "f32", [end - begin, columns])
      const [keys, values] = [tr.state("keys", precision, ringShape), tr.state("values", precision, ringShape)]
      const lines = { segments: tr.input("segments", "i32", [1, 5]), rings: tr.input("rings", "i32", [1]) }
      const { y, lse } = slidingAttention({ qkv, ...lines, keys, values }, { ...sizes, precision })
      return { y, lse }
    })
    const executable = await store.compile(program)
    const qkv = sequence.subarray(begin * columns, end * columns)
    const segments = Int32Array.of(0, end - begin, begin, 0, 0)
    parts.push((await executable.run({ qkv, segments, rings: Int32Array.of(1) })) as (typeof parts)[number])
  }
  const bits = (key: "y" | "lse") => Buffer.concat(parts.map(({ [key]: { buffer } }) => new Uint8Array(buffer)))
  return { y: bits("y"), lse: bits("lse") }
}

for (const precision of ["f32", "bf16"] as const) {
  test(`attention has the same bits whether keys are split among blocks or not, ${precision}`, async (t) => {
    const whole = await runUpTo([length], precision)
    t.is(whole.y.length, 4 * length * sizes.heads * sizes.headDim)
    t.deepEqual(await runUpTo([210, length - 1, length], precision), whole)
  })
}
