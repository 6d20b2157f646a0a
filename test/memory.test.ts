/**
 * How much memory a training batch needs; the planner's own numbers, nothing is run.
 */
import test from "ava"
import { arenaBytes, materialisedBytes } from "../bench/memory.bench.ts"
import { gradients } from "../lib/graph/gradient.ts"
import { trace } from "../lib/graph/program.ts"
import { Store } from "../lib/native.ts"
import { arithmetic } from "../lib/ops/cast.ts"
import { linear } from "../lib/ops/linear.ts"
import { linearCrossEntropy } from "../lib/ops/linear-cross-entropy.ts"

test("16 layers of width 512 train on 4 × 512 bytes in an arena of 900 MB", async (t) => {
  const peak = await arenaBytes({ state: 16, recompute: false })
  t.true(peak <= 900e6, `${peak} bytes`)
})

test("with checkpoint() the same batch needs 300 MB", async (t) => {
  const peak = await arenaBytes({ state: 16, recompute: true })
  t.true(peak <= 300e6, `${peak} bytes`)
})

for (const recompute of [false, true]) {
  test(`four times the state adds less than a tenth of what materialised states would, recompute ${recompute}`, async (t) => {
    const added = (await arenaBytes({ state: 64, recompute })) - (await arenaBytes({ state: 16, recompute }))
    const materialised = materialisedBytes(64) - materialisedBytes(16)
    t.true(added > 0, "a larger state needs more memory")
    t.true(added < materialised / 10, `${added} of ${materialised} bytes`)
  })
}

test("the logits of 8 × 512 tokens over 50,280 words are never in memory, forward and backward", async (t) => {
  const [rows, dim, vocab] = [8 * 512, 256, 50_280]
  const program = trace("head", (tr) => {
    const x = tr.input("x", "f32", [rows, dim])
    const weight = tr.weight("head.weight", "f32", [vocab, dim])
    const { losses } = linearCrossEntropy({ x, weight, targets: tr.input("targets", "i32", [rows]) })
    const seed = tr.input("seed", "f32", [rows])
    const [dx, dweight] = gradients([[losses, seed]], [x, weight], arithmetic)
    return { losses, dx: dx!, dweight: dweight! }
  })
  await using store = new Store()
  const { peakBytes } = await store.compile(program)
  const gradientBytes = 4 * (vocab * dim + rows * dim)
  const logitBytes = 4 * rows * vocab
  t.true(
    peakBytes - gradientBytes < logitBytes / 10,
    `${peakBytes - gradientBytes} bytes beside gradients, logits ${logitBytes}`,
  )
})

test("a weight that is kept in a larger form alone counts in full", async (t) => {
  const [rows, size] = [2, 64]
  const program = trace("widened", (tr) => {
    const weight = tr.weight("w", "bf16", [size, size])
    return { y: linear({ x: tr.input("x", "f32", [rows, size]), weight }, { precision: "f32" }).y }
  })
  await using store = new Store()
  const executable = await store.compile(program)
  const before = await store.memory()
  await executable.run({ x: new Float32Array(rows * size) })
  const { weights, derived } = await store.memory()
  t.deepEqual([before.weights, before.derived], [2 * size * size, 0])
  t.is(weights + derived, 4 * size * size) // panels of f32
})
