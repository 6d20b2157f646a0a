/**
 * The ways in which the work of attention is divided: by rows alone or by key blocks as well, in tiles of many rows or of few, on a GPU in
 * one launch or in several. Shapes and the device choose among them, on the CPU threads too, and bits must not tell which it was.
 */
import { spawnSync } from "node:child_process"
import test from "ava"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import { type Executable, Store, setThreads } from "../../lib/native.ts"
import { ringCapacity, slidingAttention } from "../../lib/ops/attention.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { device } from "../device.ts"
import { normal } from "./spec.ts"

// 270 rows of 15 kv heads are enough warps for a GPU of 132 multiprocessors, 210, 59 and 1 are not. Key blocks have 128 positions.
const length = 270
const sizes = { heads: 15, kvHeads: 15, headDim: 4, window: 70 }
const columns = 3 * sizes.heads * sizes.headDim
const sequence = Float32Array.from(normal([length, columns], 1).data)
const ringShape = [2, sizes.kvHeads, ringCapacity(sizes.window, length), sizes.headDim]

const compile = (store: Store, rows: number, precision: "f32" | "bf16"): Promise<Executable> =>
  store.compile(
    trace(`${rows} rows`, (tr) => {
      const qkv = tr.input("qkv", "f32", [rows, columns])
      const [keys, values] = [tr.state("keys", precision, ringShape), tr.state("values", precision, ringShape)]
      const lines = { segments: tr.input("segments", "i32", [1, 5]), rings: tr.input("rings", "i32", [1]) }
      const { y, lse } = slidingAttention({ qkv, ...lines, keys, values }, { ...sizes, precision })
      return { y, lse }
    }),
  )

/** y and the bits of lse of the whole sequence, run in parts that end at the given rows. */
async function runUpTo(ends: readonly number[], precision: "f32" | "bf16") {
  await using store = new Store(device)
  const parts: { y: Float32Array; lse: Float32Array }[] = []
  for (const [i, end] of ends.entries()) {
    const begin = ends[i - 1] ?? 0
    const executable = await compile(store, end - begin, precision)
    const qkv = sequence.subarray(begin * columns, end * columns)
    const segments = Int32Array.of(0, end - begin, begin, 0, 0)
    parts.push((await executable.run({ qkv, segments, rings: Int32Array.of(1) })) as (typeof parts)[number])
  }
  const bits = (key: "y" | "lse") => Buffer.concat(parts.map(({ [key]: { buffer } }) => new Uint8Array(buffer)))
  return { y: bits("y"), lse: bits("lse") }
}

const emulated = device === "emulated" ? test : test.skip

for (const precision of ["f32", "bf16"] as const) {
  test(`attention has the same bits whether keys are split among blocks or not, ${precision}`, async (t) => {
    const whole = await runUpTo([length], precision)
    t.is(whole.y.length, 4 * length * sizes.heads * sizes.headDim)
    t.deepEqual(await runUpTo([210, length - 1, length], precision), whole)
  })

  emulated(`fewer rows need more memory where their keys are split, ${precision}`, async (t) => {
    await using store = new Store(device)
    const [many, few] = [await compile(store, length, precision), await compile(store, 210, precision)]
    t.true(few.peakBytes > many.peakBytes, `${few.peakBytes} and ${many.peakBytes} bytes`)
  })
}

/** One row at position 2000 of a ring without a window; prints y and lse, and the bytes that it needs. */
const script = `
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { slidingAttention } from "../../lib/ops/attention.ts"
import { normal } from "./spec.ts"

const shape = [2, 2, 2048, 40]
const floats = (dims, seed) => Float32Array.from(normal(dims, seed).data)
const store = new Store(process.env.DEVICE)
const program = await store.compile(trace("row", (tr) => {
  const rings = { keys: tr.state("keys", "f32", shape), values: tr.state("values", "f32", shape), rings: tr.input("rings", "i32", [2]) }
  const inputs = { qkv: tr.input("qkv", "f32", [5, 320]), segments: tr.input("segments", "i32", [2, 5]), ...rings }
  const { y, lse } = slidingAttention(inputs, { heads: 4, kvHeads: 2, headDim: 40, window: 0 })
  return { y, lse }
}))
for (const [seed, name] of ["keys", "values"].entries()) await store.upload("state", { name, dtype: "f32", shape }, floats(shape, seed))
const segments = Int32Array.of(0, 1, 2000, 0, 0, 2, 5, 500, 0, 0)
const { y, lse } = await program.run({ qkv: floats([5, 320], 3), segments, rings: Int32Array.of(1, 0) })
console.log(JSON.stringify({ peakBytes: program.peakBytes, y: [...y], lse: [...lse] }))
`

function decode(memory: number): { peakBytes: number; y: number[]; lse: number[] } {
  const env = { ...process.env, DEVICE: device, SELSCAN_EMULATED_MEMORY: String(memory) }
  const { stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", "--input-type=module", "-e", script], {
    cwd: import.meta.dirname,
    encoding: "utf8",
    env,
  })
  return stdout === "" ? { peakBytes: 0, y: [], lse: [stderr.length] } : JSON.parse(stdout)
}

emulated("a device with little memory takes the keys of a row in several launches, which give the same bits", (t) => {
  const [large, small] = [decode(1 << 30), decode(5 << 20)]
  t.is(large.y.length, 5 * 160)
  t.true(large.y.slice(0, 160).every((value) => value !== 0 && Number.isFinite(value)))
  t.true(small.peakBytes < large.peakBytes, `${small.peakBytes} and ${large.peakBytes} bytes`)
  t.deepEqual({ y: small.y, lse: small.lse }, { y: large.y, lse: large.lse })
})
// Threads choose how the CPU cuts: one takes blocks of 512 pairs and one stripe of rows; eight take smaller ones, and keys beside
// them, of which more wait to be merged than one wave holds.
const onTheCpu = device === "cpu" ? test.serial : test.skip
for (const { title, rows, window, position } of [
  { title: "no window, keys in a ring", rows: 390, window: 0, position: 450 },
  { title: "no window, few rows, keys in a ring", rows: 100, window: 0, position: 810 },
  { title: "no window", rows: 390, window: 0, position: 0 },
  { title: "window 200, keys in a ring", rows: 390, window: 200, position: 333 },
]) {
  onTheCpu(`attention and its gradient have the same bits however threads cut them: ${title}`, async (t) => {
    const [heads, headDim, segments] = [5, 256, 2]
    const packed = (heads + 2) * headDim
    const shape = [2, 1, 1024, headDim]
    await using store = new Store(device)
    const program = trace("divided", (tr) => {
      const qkv = tr.input("qkv", "f32", [rows, packed])
      const lines = {
        segments: tr.input("segments", "i32", [segments, 5]),
        rings: tr.input("rings", "i32", [segments]),
      }
      const [keys, values] = [tr.state("keys", "f32", shape), tr.state("values", "f32", shape)]
      const { y, lse } = slidingAttention({ qkv, ...lines, keys, values }, { heads, kvHeads: 1, headDim, window })
      return { y, lse, dqkv: gradients([[y, tr.input("dy", "f32", y.shape)]], [qkv], arithmetic)[0]! }
    })
    const executable = await store.compile(program)
    const noise = (of: readonly number[], seed: number) => Float32Array.from(normal(of, seed).data)
    const held = { name: "keys", dtype: "f32", shape } as const
    const inputs = {
      qkv: noise([rows, packed], 1),
      dy: noise([rows, heads * headDim], 2),
      segments: Int32Array.of(0, rows - 10, position, 0, 0, rows - 9, rows, 0, 0, 0),
      rings: Int32Array.of(position > 0 ? 1 : 0, 0),
    }
    const runOn = async (threads: number) => {
      await setThreads(threads)
      for (const name of ["keys", "values"]) await store.upload("state", { ...held, name }, noise(shape, 3))
      return executable.run(inputs)
    }
    try {
      const one = await runOn(1)
      t.true(one.dqkv!.some((value) => value !== 0) && one.dqkv!.every(Number.isFinite))
      for (const threads of [2, 8, 32]) t.deepEqual(await runOn(threads), one, `${threads} threads`)
    } finally {
      await setThreads(0)
    }
  })
}
