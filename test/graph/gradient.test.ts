/**
 * The reverse walk, on ops of known derivative; the arithmetic is done by the cpu device.
 */
import test from "ava"
import { type ErrorCode, SelscanError } from "../../lib/errors.ts"
import { checkpoint } from "../../lib/graph/checkpoint.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { op } from "../../lib/graph/op.ts"
import { type Program, trace } from "../../lib/graph/program.ts"
import { record, type Trace } from "../../lib/graph/trace.ts"
import type { Value } from "../../lib/graph/value.ts"
import { type HostArray, Store } from "../../lib/native.ts"
import { arithmetic, cast } from "../../lib/ops/cast.ts"
import { add, exp, multiply, scale } from "../../lib/ops/elementwise.ts"
import { linear } from "../../lib/ops/linear.ts"
import { rmsNorm } from "../../lib/ops/norm.ts"
import { sum } from "../../lib/ops/reduce.ts"

async function run(program: Program, inputs: Record<string, HostArray>): Promise<Record<string, number[]>> {
  await using store = new Store("cpu")
  const executable = await store.compile(program)
  const outputs = await executable.run(inputs)
  return Object.fromEntries(Object.entries(outputs).map(([key, value]) => [key, [...value]]))
}

const seeded = (tr: Trace, y: Value) => [[y, tr.input("dy", "f32", y.shape)]] as const
const floats = (...values: number[]) => Float32Array.from(values)

test("a value used twice gets the sum of its gradients", async (t) => {
  const program = trace("square", (tr) => {
    const x = tr.input("x", "f32", [3])
    const { y } = multiply({ a: x, b: x })
    return { dx: gradients(seeded(tr, add({ a: y, b: x }).y), [x], arithmetic)[0]! }
  })
  const { dx } = await run(program, { x: floats(1, -2, 0.5), dy: floats(1, 10, 100) })
  t.deepEqual(dx, [3, -30, 200]) // 2x + 1
})

test("tied weights sum their gradients", async (t) => {
  const program = trace("tied", (tr) => {
    const x = tr.input("x", "f32", [2])
    const first = multiply({ a: x, b: tr.weight("w", "f32", [2]) }).y
    const second = multiply({ a: first, b: tr.weight("w", "f32", [2]) }).y
    return { dw: gradients(seeded(tr, second), [tr.weight("w", "f32", [2])], arithmetic)[0]! }
  })
  await using store = new Store("cpu")
  await store.upload("weight", { name: "w", dtype: "f32", shape: [2] }, floats(3, 5))
  const executable = await store.compile(program)
  const { dw } = await executable.run({ x: floats(1, 2), dy: floats(1, 1) })
  t.deepEqual([...dw!], [6, 20]) // 2·w·x
})

test("several outputs are differentiated together", async (t) => {
  const program = trace("two", (tr) => {
    const x = tr.input("x", "f32", [1])
    const a = scale({ x }, { factor: 2 }).y
    const b = scale({ x }, { factor: 3 }).y
    const seeds = [
      [a, tr.input("da", "f32", [1])],
      [b, tr.input("db", "f32", [1])],
    ] as const
    return { dx: gradients(seeds, [x], arithmetic)[0]! }
  })
  t.deepEqual((await run(program, { da: floats(1), db: floats(10) })).dx, [32])
})

test("the gradient of an intermediate value can be asked for", async (t) => {
  const program = trace("middle", (tr) => {
    const { y: middle } = scale({ x: tr.input("x", "f32", [1]) }, { factor: 2 })
    return { grad: gradients(seeded(tr, scale({ x: middle }, { factor: 5 }).y), [middle], arithmetic)[0]! }
  })
  t.deepEqual((await run(program, { dy: floats(1) })).grad, [5])
})

test("nodes that no gradient flows through are not walked", (t) => {
  const { trace: recorded } = record("side", (tr) => {
    const x = tr.input("x", "f32", [1])
    const c = exp({ x: tr.input("c", "f32", [1]) }).y
    gradients(seeded(tr, multiply({ a: x, b: c }).y), [x], arithmetic)
  })
  // The product's two gradients; the exponential, whose input is not asked for, has none.
  t.deepEqual(
    recorded.nodes.map(({ op }) => op.name),
    ["exp", "multiply", "multiply", "multiply"],
  )
})

const noGradient = op({ name: "testNoGradient", inputs: { x: "..." }, outputs: { y: "..." }, grad: null })
const forgetful = op({
  name: "testForgetful",
  inputs: { x: "...", by: "..." },
  outputs: { y: "..." },
  grad: (_inputs, _outputs, _attrs, { y }) => ({ x: y }),
})
const stopping = op({
  name: "testStopping",
  inputs: { x: "..." },
  outputs: { y: "..." },
  grad: () => ({ x: null }),
})
const inflating = op({
  name: "testInflating",
  inputs: { x: "rows" },
  outputs: { y: "2 rows" },
  grad: (_inputs, _outputs, _attrs, { y }) => ({ x: y }),
})

function fails(
  t: import("ava").ExecutionContext,
  fn: (tr: Trace, x: Value) => Value,
  code: ErrorCode,
  message: string,
): void {
  const error = t.throws(
    () =>
      record("test", (tr) => {
        const x = tr.input("x", "f32", [2])
        gradients(seeded(tr, fn(tr, x)), [x], arithmetic)
      }),
    { instanceOf: SelscanError, message },
  )
  t.is(error?.code, code)
}

test("an op without a gradient is an error at trace time, with its layer", (t) => {
  fails(
    t,
    (tr, x) => tr.scope("head", () => noGradient({ x }).y),
    "NO_GRADIENT",
    "head: testNoGradient: is not differentiable, but a gradient flows through it",
  )
})

test("a gradient that flows into an output which is there for the gradient alone is an error, not lost", (t) => {
  record("norm", (tr) => {
    const x = tr.input("x", "f32", [2, 3])
    const { y, rstd } = rmsNorm({ x, weight: tr.weight("w", "f32", [3]) })
    const seeds = [y, rstd].map((value, i) => [value, tr.input(`d${i}`, "f32", value.shape)] as const)
    const message = "rmsNorm: gradients flow through its other outputs, got one for rstd; build the loss from those"
    t.like(
      t.throws(() => gradients(seeds, [x], arithmetic), { message }),
      { code: "NO_GRADIENT", details: { op: "rmsNorm", key: "rstd" } },
    )
    t.notThrows(() => gradients(seeds.slice(0, 1), [x], arithmetic))
  })
})

test("a gradient that an op forgot is an error at trace time", (t) => {
  fails(
    t,
    (_tr, x) => forgetful({ x: scale({ x }).y, by: x }).y,
    "NO_GRADIENT",
    "testForgetful: declares no gradient for input by",
  )
})

test("a value that the outputs do not depend on is an error", (t) => {
  fails(
    t,
    (tr) => scale({ x: tr.input("other", "f32", [2]) }).y,
    "NO_GRADIENT",
    "gradients: x is not reached from the outputs; leave it out",
  )
  fails(t, (_tr, x) => stopping({ x }).y, "NO_GRADIENT", "gradients: x is not reached from the outputs; leave it out")
})

test("a gradient has the dtype of its value: what a rule gives in another is cast", (t) => {
  const { trace: recorded } = record("mixed", (tr) => {
    const x = tr.input("x", "bf16", [2, 2])
    const { y } = scale({ x }, { factor: 3 })
    // The sum is f32 whatever it adds, and so is its gradient, once broadcast.
    const total = add({ a: sum({ x: y }).y, b: sum({ x }).y }).y
    const [dx, dy] = gradients([[total, tr.input("dtotal", "f32", [])]], [x, y], arithmetic)
    t.is(dx!.dtype, "bf16")
    t.is(dy!.dtype, "bf16")
  })
  t.deepEqual(
    recorded.nodes.slice(4).map(({ op, outputs }) => `${op.name} ${Object.values(outputs)[0]!.dtype}`),
    ["broadcastLike f32", "cast bf16", "broadcastLike f32", "cast bf16", "scale bf16", "add bf16"],
  )
})

test("a cotangent in another dtype is cast before it is used", (t) => {
  record("cotangent", (tr) => {
    const x = tr.input("x", "f32", [2])
    const y = cast({ x }, { dtype: "bf16" }).y
    t.is(y.dtype, "bf16")
    t.is(gradients([[y, tr.input("dy", "f32", [2])]], [x], arithmetic)[0]!.dtype, "f32")
    t.deepEqual(
      tr.nodes.map(({ op, attrs }) => `${op.name} ${attrs.dtype}`),
      ["cast bf16", "cast bf16", "cast f32"],
    )
  })
})

test("the gradient of a bf16 weight gathers in f32", (t) => {
  record("weight", (tr) => {
    const weight = tr.weight("w", "bf16", [3, 2])
    const first = linear({ x: tr.input("x", "bf16", [4, 2]), weight }).y
    const second = linear({ x: tr.input("z", "bf16", [4, 2]), weight }).y
    const y = add({ a: first, b: second }).y
    t.is(gradients([[y, tr.input("dy", "bf16", [4, 3])]], [weight], arithmetic)[0]!.dtype, "f32")
    t.false(tr.nodes.some(({ op }) => op.name === "cast"))
  })
})

test("gradients have the shape of their value", (t) => {
  fails(t, (_tr, x) => inflating({ x }).y, "BAD_SHAPE", "gradients: gradient of x is [2], got [2,2]")
  t.throws(() => gradients([], [], arithmetic), { message: "gradients: at least one output is needed, got none" })
})

const inputs = { x: floats(0.5, -1, 2, 0.1), w: floats(1, 2, -1, 0.3), dy: floats(1, -1, 0.5, 2) }

function blocks(withCheckpoint: boolean): Program {
  return trace("blocks", (tr) => {
    const w = tr.input("w", "f32", [4])
    const block = (h: Value) => add({ a: exp({ x: multiply({ a: h, b: w }).y }).y, b: h }).y
    const wrapped = withCheckpoint ? checkpoint(block) : block
    const x = tr.input("x", "f32", [4])
    let y = x
    for (let i = 0; i < 3; i++) y = tr.scope(`layers.${i}`, () => wrapped(y))
    const [dx, dw] = gradients(seeded(tr, y), [x, w], arithmetic)
    return { y, dx: dx!, dw: dw! }
  })
}

test("gradients are the same bits with checkpoint and without", async (t) => {
  const [plain, recomputed] = [await run(blocks(false), inputs), await run(blocks(true), inputs)]
  t.deepEqual(recomputed, plain)
})

test("checkpointed nodes are traced again in their layer for the backward pass", (t) => {
  const count = (program: Program, name: string, path: string) =>
    program.nodes.filter((node) => node.op.name === name && node.path === path).length
  t.is(count(blocks(false), "exp", "layers.1"), 1)
  t.is(count(blocks(true), "exp", "layers.1"), 2)
})

test("what lies inside checkpointed blocks is not kept for the backward pass", (t) => {
  const { nodes } = blocks(true)
  const [forward, backward] = [nodes.slice(0, 9), nodes.slice(9)] // three blocks of three nodes
  const read = new Set(backward.flatMap((node) => Object.values(node.inputs)))
  const kept = forward.filter((node) => Object.values(node.outputs).some((value) => read.has(value)))
  t.deepEqual(
    kept.map((node) => `${node.path} ${node.op.name}`),
    ["layers.0 add", "layers.1 add"],
  )
})

test("a checkpointed function may return its input", async (t) => {
  const program = trace("identity", (tr) => {
    const x = tr.input("x", "f32", [1])
    return {
      dx: gradients(seeded(tr, scale({ x: checkpoint((v: Value) => v)(x) }, { factor: 3 }).y), [x], arithmetic)[0]!,
    }
  })
  t.deepEqual((await run(program, { dy: floats(2) })).dx, [6])
})

test("checkpoints do not nest", (t) => {
  t.throws(
    () =>
      trace("nested", (tr) => ({
        y: checkpoint((v: Value) => checkpoint((u: Value) => scale({ x: u }).y)(v))(tr.input("x", "f32", [1])),
      })),
    {
      message: "checkpoint: checkpoints cannot be nested",
    },
  )
})
