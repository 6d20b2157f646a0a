/**
 * Attention through a ring: a sequence's bits depend neither on how it is cut into calls, nor on what else is in a call, nor on
 * the number of threads; and what is done again is the same.
 */
import test from "ava"
import fc from "fast-check"
import { f32ToBf16 } from "../../lib/checkpoint/halves.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import { type Executable, type HostArray, Store, setThreads } from "../../lib/native.ts"
import { ringCapacity, slidingAttention } from "../../lib/ops/attention.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { device } from "../device.ts"
import { normal, segmentsOf } from "./spec.ts"

const length = 150
const heads = { heads: 6, kvHeads: 2 }
const rings = 3
const floats = ({ data }: { data: Float64Array }) => Float32Array.from(data)

interface Way {
  readonly headDim: number
  readonly window: number
  readonly precision: "f32" | "bf16"
  /** Of the first row; what lies before it is in the ring. */
  readonly position: number
}

// Positions from 200 on go over a block of keys (256) and around the ring; window 0 holds them all.
const ways: readonly Way[] = [
  { headDim: 20, window: 7, precision: "f32", position: 200 },
  { headDim: 32, window: 100, precision: "f32", position: 200 },
  { headDim: 32, window: 100, precision: "bf16", position: 200 },
  { headDim: 20, window: 0, precision: "f32", position: 200 },
  { headDim: 20, window: 64, precision: "bf16", position: 0 },
]
const titleOf = ({ headDim, window, precision, position }: Way) =>
  `headDim ${headDim}, window ${window}, ${precision}, from position ${position}`

const widthOf = ({ headDim }: Way) => heads.heads * headDim
const packedOf = ({ headDim }: Way) => (heads.heads + 2 * heads.kvHeads) * headDim
const sequenceOf = (way: Way) => floats(normal([length, packedOf(way)], 1))

const capacityOf = ({ window, position }: Way) =>
  window === 0 ? ringCapacity(1, position + length) : ringCapacity(window, length)

function attention(tr: Trace, way: Way, rows: number, segments: number) {
  const { headDim, window, precision } = way
  const shape = [rings, heads.kvHeads, capacityOf(way), way.headDim]
  const qkv = tr.input("qkv", "f32", [rows, packedOf(way)])
  const inputs = {
    qkv,
    segments: tr.input("segments", "i32", [segments, 5]),
    rings: tr.input("rings", "i32", [segments]),
    keys: tr.state("keys", precision, shape),
    values: tr.state("values", precision, shape),
  }
  return { qkv, ...slidingAttention(inputs, { ...heads, headDim, window, precision }) }
}

const compile = (store: Store, way: Way, rows: number, segments: number) =>
  store.compile(
    trace(`${rows} rows`, (tr) => {
      const { y, lse } = attention(tr, way, rows, segments)
      return { y, lse }
    }),
  )

/** Fills all rings with the same noise. */
async function fill(store: Store, way: Way): Promise<void> {
  const shape = [rings, heads.kvHeads, capacityOf(way), way.headDim]
  for (const [name, seed] of [
    ["keys", 2],
    ["values", 3],
  ] as const) {
    const noise = floats(normal(shape, seed))
    const bytes = way.precision === "bf16" ? f32ToBf16(noise) : noise
    await store.upload("state", { name, dtype: way.precision, shape }, bytes)
  }
}

/** Runs rows of the sequence through ring 1 of one store; programs are kept by their number of rows. */
class Stepper {
  readonly #store = new Store(device)
  readonly #programs = new Map<number, Executable>()
  readonly #way: Way
  readonly #sequence: Float32Array

  constructor(way: Way) {
    this.#way = way
    this.#sequence = sequenceOf(way)
  }

  fill = () => fill(this.#store, this.#way)

  async rows(begin: number, end: number): Promise<Record<string, HostArray>> {
    const [rows, packed] = [end - begin, packedOf(this.#way)]
    const program = this.#programs.get(rows) ?? (await compile(this.#store, this.#way, rows, 1))
    this.#programs.set(rows, program)
    return program.run({
      qkv: this.#sequence.subarray(begin * packed, end * packed),
      segments: Int32Array.of(0, rows, this.#way.position + begin, 0, 0),
      rings: Int32Array.of(1),
    })
  }

  /** y and lse of the whole sequence, cut before the given rows, and what the rings hold then. */
  async run(cuts: readonly number[]): Promise<HostArray[]> {
    await this.fill()
    const ends = [...cuts, length]
    const parts: Record<string, HostArray>[] = []
    for (const [i, end] of ends.entries()) parts.push(await this.rows(ends[i - 1] ?? 0, end))
    const joined = ["y", "lse"].map((key) => Float32Array.from(parts.flatMap((part) => [...part[key]!])))
    return [...joined, ...(await this.stored())]
  }

  stored = () => Promise.all(["keys", "values"].map((name) => this.#store.download("state", name)))
}

for (const way of ways) {
  test(`a sequence has the same bits in one call, row by row, and cut anywhere: ${titleOf(way)}`, async (t) => {
    const stepper = new Stepper(way)
    const whole = await stepper.run([])
    t.true(whole[0]!.every(Number.isFinite))
    t.deepEqual(await stepper.run(Array.from({ length: length - 1 }, (_, i) => i + 1)), whole, "row by row")
    for (const at of [1, 2, 56, 63, 64, 65, 149]) t.deepEqual(await stepper.run([at]), whole, `cut before row ${at}`)
    const cuts = fc
      .uniqueArray(fc.integer({ min: 1, max: length - 1 }), { maxLength: 8 })
      .map((rows) => rows.sort((a, b) => a - b))
    await fc.assert(
      fc.asyncProperty(cuts, async (rows) => t.deepEqual(await stepper.run(rows), whole)),
      { numRuns: 8, seed: 1 },
    )
  })

  test(`rows that are run again from an older position give the same bits: ${titleOf(way)}`, async (t) => {
    const stepper = new Stepper(way)
    const whole = await stepper.run([])
    const width = widthOf(way)
    await stepper.fill()
    const first = await stepper.rows(0, 90)
    await stepper.rows(90, 97) // given up
    const again = await stepper.rows(40, 110)
    t.deepEqual((again.y as Float32Array).subarray(0, 50 * width), (first.y as Float32Array).subarray(40 * width))
    await stepper.rows(60, length)
    t.deepEqual(await stepper.stored(), whole.slice(2))
    t.deepEqual((await stepper.rows(140, length)).y, (whole[0] as Float32Array).subarray(140 * width))
  })

  test(`neighbours, spare rows and the place in a call leave a sequence's bits as they are: ${titleOf(way)}`, async (t) => {
    const run = async (rows: number, begin: number, lines: ReturnType<typeof segmentsOf>, of: readonly number[]) => {
      await using store = new Store(device)
      await fill(store, way)
      const program = await compile(store, way, rows, lines.shape[0]!)
      const qkv = floats(normal([rows, packedOf(way)], 50))
      qkv.set(sequenceOf(way), begin * packedOf(way))
      const { y } = await program.run({ qkv, segments: Int32Array.from(lines.data), rings: Int32Array.from(of) })
      return (y as Float32Array).slice(begin * widthOf(way), (begin + length) * widthOf(way))
    }
    const { position } = way
    const alone = await run(length, 0, segmentsOf([0, length, position]), [2])
    const among = segmentsOf([0, 70, 100], [77, 77 + length, position], [230, 240, 3])
    t.deepEqual(await run(length + 90, 77, among, [1, 2, 0]), alone)
    t.deepEqual(await run(length + 1, 1, segmentsOf([0, 1, 180], [1, 1], [1, 1 + length, position]), [1, 1, 2]), alone)
  })

  test.serial(
    `y, lse and the gradient have the same bits on one, two and three threads: ${titleOf(way)}`,
    async (t) => {
      await using store = new Store(device)
      const program = await store.compile(
        trace("gradient", (tr) => {
          const { qkv, y, lse } = attention(tr, way, length, 3)
          const [dqkv] = gradients([[y, tr.input("dy", "f32", y.shape)]], [qkv], arithmetic)
          return { y, lse, dqkv: dqkv! }
        }),
      )
      const segments = Int32Array.from(segmentsOf([0, 20, way.position], [20, 21, 90], [25, 140, 31]).data)
      const inputs = { qkv: sequenceOf(way), dy: floats(normal([length, widthOf(way)], 20)) }
      const runOn = async (threads: number) => {
        await setThreads(threads)
        await fill(store, way)
        return program.run({ ...inputs, segments, rings: Int32Array.of(2, 1, 0) })
      }
      try {
        const one = await runOn(1)
        t.deepEqual(await runOn(2), one)
        t.deepEqual(await runOn(3), one)
      } finally {
        await setThreads(0)
      }
    },
  )
}
