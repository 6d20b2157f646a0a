/**
 * What the cases of rope.ts, token-shift.ts and layer-norm.ts cannot say: bits that depend neither on how a sequence is cut into
 * calls, nor on its neighbours, nor on the number of threads; running in place; and what is refused.
 */
import test from "ava"
import { gradients } from "../../lib/graph/gradient.ts"
import { type Program, trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import type { Attribute, Value } from "../../lib/graph/value.ts"
import { type HostArray, Store, setThreads } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { add } from "../../lib/ops/elementwise.ts"
import { layerNorm } from "../../lib/ops/norm.ts"
import { rope } from "../../lib/ops/rope.ts"
import { swiglu } from "../../lib/ops/swiglu.ts"
import { tokenShift } from "../../lib/ops/token-shift.ts"
import { device } from "../device.ts"
import { normal, segmentsOf, type Tensor64 } from "./spec.ts"

const [length, dim, position, slots] = [61, 36, 999_983, 3]
const turn = { headDim: 10, heads: 3 }
const floats = ({ data }: Tensor64) => Float32Array.from(data)
const sequence = floats(normal([length, dim], 1))
const fixed = { weight: floats(normal([dim], 2)), bias: floats(normal([dim], 3)) }

/** A norm, a shift, a turn and a gate, one after the other. */
function layer(tr: Trace, rows: number, lines: number) {
  const of = (name: string, ...shape: number[]) => tr.input(name, "f32", shape)
  const [x, weight, bias] = [of("x", rows, dim), of("weight", dim), of("bias", dim)]
  const segments = tr.input("segments", "i32", [lines, 5])
  const normed = layerNorm({ x, weight, bias }).y
  const shifted = tokenShift({ x: normed, segments, carried: tr.state("carried", "f32", [slots, dim / 2]) }).y
  const up = rope({ x: shifted, segments }, turn).y
  return { x, weight, bias, y: swiglu({ gate: normed, up }).y }
}

/** Rows of the sequence in calls that end at the given rows, each continuing slot 1. */
async function inCalls(ends: readonly number[]): Promise<number[]> {
  await using store = new Store(device)
  const out: number[] = []
  for (const [i, end] of ends.entries()) {
    const begin = ends[i - 1] ?? 0
    const executable = await store.compile(trace("rows", (tr) => ({ y: layer(tr, end - begin, 1).y })))
    const { y } = await executable.run({
      ...fixed,
      x: sequence.slice(begin * dim, end * dim),
      segments: Int32Array.of(0, end - begin, position + begin, begin === 0 ? 0 : 1, 1),
    })
    out.push(...(y as Float32Array))
  }
  return out
}

/** The layer and its gradients on two copies of the sequence, with spare rows around them. */
async function amongOthers(): Promise<Record<string, HostArray>> {
  const rows = 2 * length + 5
  const lines = segmentsOf([2, 2 + length, position, 0, 1], [0, 0], [3 + length, 3 + 2 * length, position, 0, 2])
  const program = trace("neighbours", (tr) => {
    const { x, weight, bias, y } = layer(tr, rows, 3)
    const [dx, dweight, dbias] = gradients([[y, tr.input("dy", "f32", [rows, dim])]], [x, weight, bias], arithmetic)
    return { y, dx: dx!, dweight: dweight!, dbias: dbias! }
  })
  const [x, dy] = [new Float32Array(rows * dim).fill(7), floats(normal([rows, dim], 4))]
  for (const begin of [2, 3 + length]) x.set(sequence, begin * dim)
  await using store = new Store(device)
  return (await store.compile(program)).run({ ...fixed, x, dy, segments: Int32Array.from(lines.data) })
}

test("a sequence has the same bits however it is cut into calls", async (t) => {
  const whole = await inCalls([length])
  for (const ends of [
    [1, length],
    [8, 9, 10, 33, length],
    [32, 60, length],
  ])
    t.deepEqual(await inCalls(ends), whole)
})

test("a sequence has the same bits among others, and spare rows are zero", async (t) => {
  const whole = await inCalls([length])
  const y = [...((await amongOthers()).y as Float32Array)]
  for (const begin of [2, 3 + length]) t.deepEqual(y.slice(begin * dim, (begin + length) * dim), whole)
  t.true(y.slice(0, 2 * dim).every((value) => value === 0))
  t.true(y.slice((2 + length) * dim, (3 + length) * dim).every((value) => value === 0))
})

test.serial("results do not depend on the number of threads", async (t) => {
  const alone = await amongOthers()
  for (const threads of [1, 2, 5]) {
    setThreads(threads)
    t.deepEqual(await amongOthers(), alone, `${threads} threads`)
  }
  setThreads(0)
})

for (const interleaved of [false, true]) {
  test(`turning there and back gives the rows again, in place as well, interleaved ${interleaved}`, async (t) => {
    const attrs = { ...turn, rotary: 8, interleaved }
    const segments = Int32Array.of(1, length, position, 0, 0)
    const round = (inPlace: boolean) =>
      trace("round", (tr) => {
        const x = tr.input("x", "f32", [length, dim])
        const lines = tr.input("segments", "i32", [1, 5])
        const { y: twice } = add({ a: x, b: x })
        const { y: there } = rope({ x: twice, segments: lines }, attrs)
        const { y } = rope({ x: there, segments: lines }, { ...attrs, inverse: true })
        return { y, ...(!inPlace && { there, twice }) }
      })
    await using store = new Store(device)
    const [apart, inPlace] = await Promise.all(
      [false, true].map(async (mode) => (await store.compile(round(mode))).run({ x: sequence, segments })),
    )
    t.deepEqual(inPlace!.y, apart!.y)
    const y = apart!.y as Float32Array
    t.true(y.subarray(0, dim).every((value) => value === 0))
    t.true(y.every((value, i) => i < dim || Math.abs(value - 2 * sequence[i]!) < 1e-5))
    const there = apart!.there as Float32Array
    t.true(
      there.some((value, i) => i >= dim && Math.abs(value - 2 * sequence[i]!) > 0.5),
      "rows do turn",
    )
  })
}

const refusedTurns: readonly (readonly [Record<string, number>, RegExp])[] = [
  [{ headDim: 0 }, /headDim is a whole number of at least 1, got 0/],
  [{ heads: 1.5 }, /heads is a whole number of at least 1, got 1.5/],
  [{ headDim: 7, heads: 1 }, /rotary is an even number .* got 0 for headDim 7/],
  [{ rotary: 12 }, /at most 10, .* got 12 for headDim 10/],
  [{ rotary: -2 }, /got -2 for headDim 10/],
  [{ base: 1 }, /base is above 1, got 1/],
  [{ heads: 4 }, /heads·headDim = 40 columns or more, got 36/],
]

for (const [attrs, message] of refusedTurns) {
  test(`rope: ${JSON.stringify(attrs)} is refused while tracing`, (t) => {
    trace("refused", (tr) => {
      const inputs = { x: tr.input("x", "f32", [4, dim]), segments: tr.input("segments", "i32", [1, 5]) }
      const error = t.throws(() => rope(inputs, { ...turn, ...attrs }), { message })
      t.like(error, { code: "heads" in attrs && attrs.heads === 4 ? "BAD_SHAPE" : "BAD_OPTION" })
      return {}
    })
  })
}

test("tokenShift: one column, and halves of another width, are refused while tracing", (t) => {
  trace("refused", (tr) => {
    const segments = tr.input("segments", "i32", [1, 5])
    const shift = (columns: number, half: number) =>
      tokenShift({
        x: tr.input(`x${columns}`, "f32", [4, columns]),
        segments,
        carried: tr.state(`c${half}`, "f32", [2, half]),
      })
    t.throws(() => shift(1, 1), { code: "BAD_SHAPE", message: /dim is at least 2, .* got 1$/ })
    t.throws(() => shift(9, 5), { code: "BAD_SHAPE", message: /⌊dim\/2⌋ = 4 shifted columns, got 5/ })
    return {}
  })
})

/** A program whose only node has other attributes than it was traced with, as one from a file may. */
function altered(program: Program, attrs: Record<string, Attribute>): Program {
  Object.assign(program.nodes[0]!, { attrs: { ...program.nodes[0]!.attrs, ...attrs } })
  return program
}

for (const attrs of [
  { headDim: 1e12 },
  { headDim: 36, heads: 2 },
  { heads: 0.5 },
  { heads: -1 },
  { rotary: 11 },
  { rotary: 300 },
  { rotary: 12 },
  { base: 0 },
  { base: Number.NaN },
]) {
  test(`rope: a program with ${JSON.stringify(attrs)} is refused at compile`, async (t) => {
    await using store = new Store(device)
    const program = trace("altered", (tr) =>
      rope({ x: tr.input("x", "f32", [4, dim]), segments: tr.input("segments", "i32", [1, 5]) }, turn),
    )
    await t.throwsAsync(store.compile(altered(program, attrs)), { message: /rope: / })
  })
}

test("segments that reach beyond the rows, and slots that are not there, are refused before a run", async (t) => {
  await using store = new Store(device)
  const compile = (body: (x: Value, segments: Value) => Record<string, Value>) =>
    store.compile(trace("segments", (tr) => body(tr.input("x", "f32", [4, dim]), tr.input("segments", "i32", [1, 5]))))
  const x = sequence.slice(0, 4 * dim)
  const turning = await compile((x, segments) => rope({ x, segments }, turn))
  const shifting = await compile((x, segments) =>
    tokenShift({ x, segments, carried: x.trace.state("halves", "f32", [slots, dim / 2]) }),
  )
  for (const executable of [turning, shifting]) {
    for (const lines of [
      [0, 5, 0, 0, 0],
      [-1, 4, 0, 0, 0],
      [0, 4, -1, 0, 0],
      [0, 4, 2 ** 31 - 4, 0, 0],
    ]) {
      await t.throwsAsync(executable.run({ x, segments: Int32Array.from(lines) }), { code: "BAD_INPUT" })
    }
  }
  await t.throwsAsync(shifting.run({ x, segments: Int32Array.of(0, 4, 0, 0, slots) }), { code: "BAD_INPUT" })
  await t.notThrowsAsync(turning.run({ x, segments: Int32Array.of(0, 4, 0, 0, slots) }), "rope has no slots")
})
