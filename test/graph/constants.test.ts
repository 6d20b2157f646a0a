import test from "ava"
import { checkpoint } from "../../lib/graph/checkpoint.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { Store } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { split } from "../../lib/ops/columns.ts"
import { add, negExp, overwrite, scale } from "../../lib/ops/elementwise.ts"
import { sum } from "../../lib/ops/reduce.ts"

// What is computed from weights alone is kept from run to run and shared by the programs of a store.

const slot = (name: string, shape: readonly number[]) => ({ name, dtype: "f32", shape }) as const

test("programs whose constants differ in the last digit of an attribute do not share them", async (t) => {
  await using store = new Store()
  await store.upload("weight", slot("w", [1]), Float32Array.of(1))
  const scaled = async (factor: number) => {
    const program = trace("scaled", (tr) => ({ y: scale({ x: tr.weight("w", "f32", [1]) }, { factor }).y }))
    return (await (await store.compile(program)).run({})).y![0]
  }
  t.is(await scaled(1234567), 1234567)
  t.is(await scaled(1234568), 1234568)
})

test("constants of different sizes do not share memory", async (t) => {
  await using store = new Store()
  const shape = [1, 1_200_002]
  await store.upload("weight", slot("w", shape), new Float32Array(shape[1]!).fill(1))
  const first = async (first: number) => {
    const program = trace("cut", (tr) => ({ y: split({ x: tr.weight("w", "f32", shape) }, { first }).a }))
    return (await (await store.compile(program)).run({})).y!.length
  }
  t.is(await first(1_000_001), 1_000_001)
  t.is(await first(1_000_400), 1_000_400)
})

test("a weight whose name spells the expression of another value is a value of its own", async (t) => {
  await using store = new Store()
  const sum2 = trace("sum", (tr) => {
    const [a, b] = [tr.weight("a", "f32", [1]), tr.weight("b", "f32", [1])]
    return { y: negExp({ x: add({ a, b }).y }).y }
  })
  const forged = trace("forged", (tr) => ({ y: negExp({ x: tr.weight("add(a=a,b=b).y", "f32", [4096]) }).y }))
  await store.upload("weight", slot("b", [1]), Float32Array.of(Math.log(2)))
  const [small, large] = [await store.compile(sum2), await store.compile(forged)]
  t.true(Math.abs((await small.run({})).y![0]! + 2) < 1e-6)
  t.true((await large.run({})).y!.every((value) => value === -1))
})

test("what was computed from a weight before its update keeps its value after it", async (t) => {
  await using store = new Store()
  await store.upload("weight", slot("w", [1]), Float32Array.of(0))
  const program = trace("update", (tr) => {
    const total = tr.weight("w", "f32", [1])
    const before = negExp({ x: total }).y
    overwrite({ total, x: tr.input("x", "f32", [1]) })
    const after = negExp({ x: total }).y
    return { before, sum: add({ a: before, b: after }).y }
  })
  const executable = await store.compile(program)
  const outputs = await executable.run({ x: Float32Array.of(Math.log(2)) })
  t.is(outputs.before![0], -1)
  t.true(Math.abs(outputs.sum![0]! + 3) < 1e-6)
})

test("memory can be asked for while programs are compiled", async (t) => {
  await using store = new Store()
  const jobs = Array.from({ length: 40 }, async (_, i) => {
    const program = trace("some", (tr) => ({ y: negExp({ x: tr.weight(`w${i}`, "f32", [64]) }).y }))
    await store.compile(program)
    return store.memory()
  })
  const sizes = await Promise.all(jobs)
  t.is(sizes.at(-1)!.weights, 40 * 256)
})

test("a value inside a checkpoint that is used outside is refused: its gradient would be lost", (t) => {
  const build = () =>
    trace("leak", (tr) => {
      const w = tr.weight("w", "f32", [4])
      let inner: Value | undefined
      const outer = checkpoint((x: Value) => {
        inner = scale({ x }, { factor: 2 }).y
        return scale({ x: inner }, { factor: 3 }).y
      })(w)
      const loss = sum({ x: add({ a: outer, b: inner! }).y }).y
      const [grad] = gradients([[loss, tr.input("one", "f32", [])]], [w], arithmetic)
      return { grad: grad! }
    })
  t.like(t.throws(build, { message: /checkpoint/ }), { code: "NO_GRADIENT" })
})
