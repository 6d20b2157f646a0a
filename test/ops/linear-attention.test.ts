/**
 * Gated linear attention and retention as a session runs them: a sequence's bits depend neither on how it is cut into calls, nor on
 * what else is in a call, nor on the number of threads; and what is refused.
 */
import test from "ava"
import fc from "fast-check"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import { type Executable, type HostArray, Store, setThreads } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { linearAttention } from "../../lib/ops/linear-attention.ts"
import { device } from "../device.ts"
import { normal, segmentsOf, uniform } from "./spec.ts"

const length = 75
const heads = 2
const key = 19
const value = 70 // more than one block of columns
const slots = 3
const attrs = { heads, scale: 0.2 }
const floats = ({ data }: { data: Float64Array }) => Float32Array.from(data)
const columns = { q: heads * key, k: heads * key, v: heads * value, g: heads * key }
type Name = keyof typeof columns
const names = Object.keys(columns) as Name[]
const sequence = Object.fromEntries(
  names.map((name, i) => [
    name,
    floats(name === "g" ? uniform([length, columns.g], i, -3, 0) : normal([length, columns[name]], i)),
  ]),
) as Record<Name, Float32Array>

type Kind = "gated" | "retention"
const namesOf = (kind: Kind) => names.filter((name) => name !== "g" || kind === "gated")

function block(tr: Trace, kind: Kind, rows: number, segments: number, carry: boolean) {
  const of = (name: Name) => tr.input(name, "f32", [rows, columns[name]])
  const inputs = { q: of("q"), k: of("k"), v: of("v"), ...(kind === "gated" && { g: of("g") }) }
  const width = namesOf(kind).reduce((total, name) => total + (name === "q" ? 0 : columns[name]), 0)
  const states = carry && {
    carried: tr.state("carried", "f32", [slots, heads, key, value]),
    tail: tr.state("tail", "f32", [slots, 15, width]),
  }
  const lines = tr.input("segments", "i32", [segments, 5])
  const { y, final } = linearAttention(
    { ...inputs, segments: lines, ...states },
    { ...attrs, retention: kind === "retention" },
  )
  return { y, final, inputs }
}

/** Runs rows of the sequence from position `start` on; its state stays in slot 1 or goes to and fro between 1 and 2. */
class Stepper {
  readonly #store = new Store(device)
  readonly #programs = new Map<number, Executable>()
  readonly #kind: Kind
  readonly #start: number

  constructor(kind: Kind, start: number) {
    this.#kind = kind
    this.#start = start
  }

  async rows(begin: number, end: number, from: number, to: number): Promise<Float32Array> {
    const rows = end - begin
    const program =
      this.#programs.get(rows) ??
      (await this.#store.compile(trace(`${rows} rows`, (tr) => ({ y: block(tr, this.#kind, rows, 1, true).y }))))
    this.#programs.set(rows, program)
    const parts = namesOf(this.#kind).map(
      (name) => [name, sequence[name].subarray(begin * columns[name], end * columns[name])] as const,
    )
    const segments = Int32Array.of(0, rows, this.#start + begin, begin === 0 ? 0 : from, to)
    return (await program.run({ ...Object.fromEntries(parts), segments })).y as Float32Array
  }

  /** y of the whole sequence cut before the given rows, and the state it leaves: S, and the lines of the tail that count. */
  async run(cuts: readonly number[], alternate: boolean): Promise<HostArray[]> {
    const ends = [...cuts, length]
    const parts: Float32Array[] = []
    let slot = 1
    for (const [i, end] of ends.entries()) {
      const to = alternate ? 3 - slot : slot
      parts.push(await this.rows(ends[i - 1] ?? 0, end, slot, to))
      slot = to
    }
    const bytes = await Promise.all(["carried", "tail"].map((name) => this.#store.download("state", name)))
    const [S, tail] = bytes.map((all) => all.slice((slot * all.length) / slots, ((slot + 1) * all.length) / slots))
    const used = (((this.#start + length) % 16) * tail!.length) / 15
    return [Float32Array.from(parts.flatMap((y) => [...y])), S!, tail!.slice(0, used)]
  }
}

for (const kind of ["gated", "retention"] as const) {
  for (const start of [0, 21]) {
    test(`${kind}: a sequence from position ${start} has the same bits in one call, row by row, and cut anywhere`, async (t) => {
      const stepper = new Stepper(kind, start)
      const whole = await stepper.run([], false)
      const rows = Array.from({ length: length - 1 }, (_, i) => i + 1)
      for (const alternate of [false, true]) {
        t.deepEqual(
          await stepper.run(rows, alternate),
          whole,
          `row by row, slots ${alternate ? "taking turns" : "kept"}`,
        )
      }
      const cuts = fc
        .uniqueArray(fc.integer({ min: 1, max: length - 1 }), { maxLength: 8 })
        .map((list) => list.sort((a, b) => a - b))
      await fc.assert(
        fc.asyncProperty(cuts, fc.boolean(), async (list, alternate) =>
          t.deepEqual(await stepper.run(list, alternate), whole),
        ),
        { numRuns: 12, seed: 1 },
      )
    })
  }
}

test("neighbours, spare rows and the place in a call leave a sequence's bits as they are", async (t) => {
  const run = async (rows: number, begin: number, lines: ReturnType<typeof segmentsOf>) => {
    await using store = new Store(device)
    const program = await store.compile(
      trace("block", (tr) => ({ y: block(tr, "gated", rows, lines.shape[0]!, false).y })),
    )
    const inputs = names.map((name, i) => {
      const all = floats(normal([rows, columns[name]], 50 + i, 0.1)).map((x) => (name === "g" ? -Math.abs(x) : x))
      all.set(sequence[name], begin * columns[name])
      return [name, all] as const
    })
    const { y } = await program.run({ ...Object.fromEntries(inputs), segments: Int32Array.from(lines.data) })
    return (y as Float32Array).slice(begin * columns.v, (begin + length) * columns.v)
  }
  const alone = await run(length, 0, segmentsOf([0, length, 5]))
  t.deepEqual(await run(length + 90, 77, segmentsOf([0, 70, 3], [77, 77 + length, 5], [155, 160])), alone)
  t.deepEqual(await run(length + 1, 1, segmentsOf([0, 1], [1, 1], [1, 1 + length, 5])), alone)
})

test.serial("outputs and gradients have the same bits on one, two and three threads", async (t) => {
  await using store = new Store(device)
  const program = await store.compile(
    trace("gradients", (tr) => {
      const { y, final, inputs } = block(tr, "gated", length, 3, false)
      const pairs = [
        [y, tr.input("dy", "f32", y.shape)],
        [final, tr.input("dfinal", "f32", final.shape)],
      ] as const
      const grads = gradients(pairs, Object.values(inputs), arithmetic)
      return { y, ...Object.fromEntries(Object.keys(inputs).map((name, i) => [`d${name}`, grads[i]!])) }
    }),
  )
  const segments = Int32Array.from(segmentsOf([0, 20, 3], [20, 21], [25, 70, 60]).data)
  const cotangents = { dy: floats(normal([length, columns.v], 20)), dfinal: floats(normal([3, heads, key, value], 21)) }
  const runOn = async (threads: number) => {
    await setThreads(threads)
    return program.run({ ...sequence, ...cotangents, segments })
  }
  try {
    const one = await runOn(1)
    t.deepEqual(await runOn(2), one)
    t.deepEqual(await runOn(3), one)
  } finally {
    await setThreads(0)
  }
})

test("what does not fit is refused where it is traced", (t) => {
  interface Sizes {
    readonly q?: number
    readonly v?: number
    readonly g?: number
    readonly tail?: number
  }
  const refuses = (sizes: Sizes, given: Record<string, number | boolean>, code: string, message: RegExp) =>
    t.throws(
      () =>
        trace("bad", (tr) => {
          const of = (name: string, ...shape: number[]) => tr.input(name, "f32", shape)
          const { q = 12, v = 6, g, tail } = sizes
          const segments = tr.input("segments", "i32", [1, 5])
          const inputs = { q: of("q", 4, q), k: of("k", 4, q), v: of("v", 4, v), segments }
          const gate = g === undefined ? {} : { g: of("g", 4, g) }
          const states = tail === undefined ? {} : { carried: of("S", 2, 2, 6, 3), tail: of("tail", 2, 15, tail) }
          return { y: linearAttention({ ...inputs, ...gate, ...states }, given).y }
        }),
      { code, message } as object,
    )
  refuses({}, { heads: 5 }, "BAD_SHAPE", /heads divides the columns of q, k and v, got 5 heads/)
  refuses({}, { heads: 0 }, "BAD_OPTION", /heads is a whole number of at least 1, got 0/)
  refuses({ q: 514 }, { heads: 2 }, "BAD_SHAPE", /at most 256 keys and 512 values, got 257 and 3/)
  refuses({ v: 513 }, {}, "BAD_SHAPE", /at most 256 keys and 512 values, got 12 and 513/)
  refuses({ g: 6 }, { heads: 2 }, "BAD_SHAPE", /g has the 12 columns of k/)
  refuses({ g: 12 }, { heads: 2, retention: true }, "BAD_SHAPE", /not given with retention/)
  refuses({ tail: 17 }, { heads: 2 }, "BAD_SHAPE", /a tail \(2, 15, 18\), got \(2, 15, 17\)/)
  refuses({ tail: 18 }, { heads: 3 }, "BAD_SHAPE", /a state is \(3, 4, 2\)/)
})

test("a tail alone, and initial and carried states together, are refused where they are traced", (t) => {
  const refuses = (which: readonly ("initial" | "carried" | "tail")[], message: RegExp) =>
    t.throws(
      () =>
        trace("states", (tr) => {
          const of = (name: string, ...shape: number[]) => tr.input(name, "f32", shape)
          const all = {
            initial: of("initial", 1, 1, 2, 3),
            carried: tr.state("carried", "f32", [2, 1, 2, 3]),
            tail: tr.state("tail", "f32", [2, 15, 5]),
          }
          const states = Object.fromEntries(which.map((name) => [name, all[name]]))
          const segments = tr.input("segments", "i32", [1, 5])
          return { y: linearAttention({ q: of("q", 4, 2), k: of("k", 4, 2), v: of("v", 4, 3), segments, ...states }).y }
        }),
      { code: "BAD_INPUT", message } as object,
    )
  refuses(["tail"], /carried and tail are given together, got a tail alone/)
  refuses(["initial", "tail"], /got a tail alone/)
  refuses(["initial", "carried", "tail"], /initial or carried is given, got both/)
})
