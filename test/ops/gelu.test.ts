/**
 * The exact GELU, relatively: a model's far tail is small, not zero.
 */
import test, { type ExecutionContext } from "ava"
import { type Program, trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { activationGrad, linear } from "../../lib/ops/linear.ts"
import { device } from "../device.ts"
import { functions } from "./linear.ts"

const attrs = { activation: "gelu" }
const [gelu, derivative] = functions.gelu!
/** From −13, below which results near what f32 holds at all, to 13; and the derivative's only zero is near −0.7518. */
const points = Float32Array.from({ length: 5201 }, (_, i) => (i - 2600) / 200)

async function run(program: Program, inputs: Record<string, Float32Array>): Promise<Float32Array> {
  await using store = new Store(device)
  const executable = await store.compile(program)
  return (await executable.run(inputs)).y as Float32Array
}

const forward = (rows: number) =>
  trace("gelu", (t) => {
    const inputs = { x: t.input("x", "f32", [rows, 1]), weight: t.input("weight", "f32", [1, 1]) }
    return { y: linear(inputs, attrs).y }
  })

const backward = (rows: number) =>
  trace("gelu", (t) => {
    const inputs = { dy: t.input("dy", "f32", [rows]), pre: t.input("pre", "f32", [rows]) }
    return { y: activationGrad(inputs, attrs).dx }
  })

const one = Float32Array.from([1])
const values = (x: Float32Array) => run(forward(x.length), { x, weight: one })
const slopes = (pre: Float32Array) => run(backward(pre.length), { dy: pre.map(() => 1), pre })

function relative(
  t: ExecutionContext,
  got: Float32Array,
  want: (x: number) => number,
  skip: (x: number) => boolean,
): void {
  const errors = [...points].map((x, i) => (skip(x) ? 0 : Math.abs(got[i]! / want(x) - 1)))
  const worst = errors.indexOf(Math.max(...errors))
  t.log(`largest relative error ${errors[worst]!.toExponential(2)} at ${points[worst]}`)
  t.true(errors[worst]! < 2 ** -20, `${points[worst]}: expected ${want(points[worst]!)}, got ${got[worst]}`)
}

test("gelu is right relatively down to −13", async (t) => {
  relative(t, await values(points), gelu, (x) => x === 0)
})

test("gelu's derivative is right relatively, but for the place where it is zero", async (t) => {
  relative(t, await slopes(points), derivative, (x) => Math.abs(x + 0.7518) < 0.25)
})

test("gelu of large numbers and NaN, and its derivative at infinity", async (t) => {
  const { POSITIVE_INFINITY: infinite, NaN: none } = Number
  const large = await values(Float32Array.from([-1e30, -40, -0, 0, 40, 1e30, none]))
  t.deepEqual([...large].map(Math.abs), [0, 0, 0, 0, 40, Math.fround(1e30), none])
  const ends = await slopes(Float32Array.from([-infinite, -3e38, -0, 0, 3e38, infinite, none]))
  t.deepEqual([...ends].map(Math.abs), [0, 0, 0.5, 0.5, 1, 1, none])
})
