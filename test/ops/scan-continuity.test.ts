/**
 * The convolution and the scan as a Mamba block joins them: a sequence's bits depend neither on how it is cut into calls,
 * nor on what else is in a call, nor on the number of threads.
 */
import test from "ava"
import fc from "fast-check"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import { type Executable, type HostArray, Store, setThreads } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { causalConv } from "../../lib/ops/causal-conv.ts"
import { selectiveScan } from "../../lib/ops/selective-scan.ts"
import { device } from "../device.ts"
import { normal, segmentsOf, uniform } from "./spec.ts"

const length = 150
const inner = 37
const width = 4
const slots = 3
const floats = ({ data }: { data: Float64Array }) => Float32Array.from(data)

/** What the block reads, with so many states per channel. */
function dataOf(state: number) {
  const rowInputs = { x: inner, delta: inner, z: inner, B: state, C: state }
  const fixed = {
    A: floats(uniform([inner, state], 1, -3, -0.01)),
    D: floats(normal([inner], 2)),
    bias: floats(normal([inner], 3)),
    weight: floats(normal([inner, 1, width], 4)),
  }
  const sequence = Object.fromEntries(
    Object.entries(rowInputs).map(([key, columns], i) => [key, floats(normal([length, columns], 10 + i))]),
  ) as Record<keyof typeof rowInputs, Float32Array>
  return { state, rowInputs, fixed, sequence }
}
type Data = ReturnType<typeof dataOf>
const data = dataOf(18) // more than one pass of any instruction set

function block(tr: Trace, { state }: Data, rows: number, segments: number, carry: boolean) {
  const of = (key: string, ...shape: number[]) => tr.input(key, "f32", shape)
  const lines = tr.input("segments", "i32", [segments, 5])
  const carried = (name: string, size: number) => (carry ? tr.state(name, "f32", [slots, inner, size]) : undefined)
  const weights = {
    A: of("A", inner, state),
    D: of("D", inner),
    bias: of("bias", inner),
    weight: of("weight", inner, 1, width),
  }
  const x = of("x", rows, inner)
  const conv = causalConv({ x, weight: weights.weight, segments: lines, carried: carried("conv", width - 1) })
  const inputs = {
    delta: of("delta", rows, inner),
    z: of("z", rows, inner),
    B: of("B", rows, state),
    C: of("C", rows, state),
  }
  const { A, D, bias } = weights
  const scan = selectiveScan({ x: conv.y, ...inputs, A, D, bias, segments: lines, carried: carried("ssm", state) })
  return { y: scan.y, final: scan.final, wrt: { x, ...inputs, ...weights } }
}

/** Runs rows of the sequence with its states in slot 1 of one store; programs are kept by their number of rows. */
class Stepper {
  readonly #store = new Store(device)
  readonly #programs = new Map<number, Executable>()
  readonly #data: Data

  constructor(data: Data) {
    this.#data = data
  }

  async rows(begin: number, end: number): Promise<Float32Array> {
    const rows = end - begin
    const { rowInputs, fixed, sequence } = this.#data
    const program =
      this.#programs.get(rows) ??
      (await this.#store.compile(trace(`${rows} rows`, (tr) => ({ y: block(tr, this.#data, rows, 1, true).y }))))
    this.#programs.set(rows, program)
    const parts = Object.entries(rowInputs).map(
      ([key, columns]) =>
        [key, sequence[key as keyof typeof sequence].subarray(begin * columns, end * columns)] as const,
    )
    const segments = Int32Array.from([0, rows, begin, begin === 0 ? 0 : 1, 1])
    const { y } = await program.run({ ...fixed, ...Object.fromEntries(parts), segments })
    return y as Float32Array
  }

  /** y of the whole sequence, and the states it leaves, cut before the given rows. */
  async run(cuts: readonly number[]): Promise<HostArray[]> {
    const ends = [...cuts, length]
    const parts: Float32Array[] = []
    for (const [i, end] of ends.entries()) parts.push(await this.rows(ends[i - 1] ?? 0, end))
    const states = ["conv", "ssm"].map((name) => this.#store.download("state", name))
    return [Float32Array.from(parts.flatMap((part) => [...part])), ...(await Promise.all(states))]
  }
}

// One row alone has a way of its own where states fill vectors: 16 and 64 on every instruction set.
for (const state of [18, 16, 64])
  test(`with ${state} states, a sequence has the same bits in one call, row by row, and cut anywhere`, async (t) => {
    const stepper = new Stepper(dataOf(state))
    const whole = await stepper.run([])
    t.deepEqual(await stepper.run(Array.from({ length: length - 1 }, (_, i) => i + 1)), whole, "row by row")
    for (const at of [1, 3, 63, 64, 65, 149]) t.deepEqual(await stepper.run([at]), whole, `cut before row ${at}`)
    const cuts = fc
      .uniqueArray(fc.integer({ min: 1, max: length - 1 }), { maxLength: 8 })
      .map((rows) => rows.sort((a, b) => a - b))
    await fc.assert(
      fc.asyncProperty(cuts, async (rows) => t.deepEqual(await stepper.run(rows), whole)),
      { numRuns: 20, seed: 1 },
    )
  })

test("neighbours, spare rows and the place in a call leave a sequence's bits as they are", async (t) => {
  const { rowInputs, fixed, sequence } = data
  const run = async (rows: number, begin: number, lines: ReturnType<typeof segmentsOf>) => {
    await using store = new Store(device)
    const program = await store.compile(
      trace("block", (tr) => ({ y: block(tr, data, rows, lines.shape[0]!, false).y })),
    )
    const inputs = Object.entries(rowInputs).map(([key, columns], i) => {
      const all = floats(normal([rows, columns], 50 + i))
      all.set(sequence[key as keyof typeof sequence], begin * columns)
      return [key, all] as const
    })
    const { y } = await program.run({ ...fixed, ...Object.fromEntries(inputs), segments: Int32Array.from(lines.data) })
    return (y as Float32Array).slice(begin * inner, (begin + length) * inner)
  }
  const alone = await run(length, 0, segmentsOf([0, length]))
  t.deepEqual(await run(length + 90, 77, segmentsOf([0, 70], [77, 77 + length], [230, 240])), alone)
  t.deepEqual(await run(length + 1, 1, segmentsOf([0, 1], [1, 1], [1, 1 + length])), alone)
})

test.serial("outputs and gradients have the same bits on one, two and three threads", async (t) => {
  const { state, fixed, sequence } = data
  await using store = new Store(device)
  const program = await store.compile(
    trace("gradients", (tr) => {
      const { y, final, wrt } = block(tr, data, length, 3, false)
      const pairs = [
        [y, tr.input("dy", "f32", y.shape)],
        [final, tr.input("dfinal", "f32", final.shape)],
      ] as const
      const grads = gradients(pairs, Object.values(wrt), arithmetic)
      return { y, ...Object.fromEntries(Object.keys(wrt).map((key, i) => [`d${key}`, grads[i]!])) }
    }),
  )
  const segments = Int32Array.from(segmentsOf([0, 20], [20, 21], [25, 140]).data)
  const cotangents = { dy: floats(normal([length, inner], 20)), dfinal: floats(normal([3, inner, state], 21)) }
  const runOn = async (threads: number) => {
    await setThreads(threads)
    return program.run({ ...fixed, ...sequence, ...cotangents, segments })
  }
  try {
    const one = await runOn(1)
    t.deepEqual(await runOn(2), one)
    t.deepEqual(await runOn(3), one)
  } finally {
    await setThreads(0)
  }
})
