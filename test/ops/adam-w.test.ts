/**
 * An optimizer's step over all parameters is one launch on a GPU, of as many as its table holds: what each parameter gets must
 * not depend on those beside it.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { Store } from "../../lib/native.ts"
import { adamW } from "../../lib/ops/adam-w.ts"
import { device } from "../device.ts"
import { normal } from "./spec.ts"

const count = 700 // more than one table
const sizeOf = (i: number) => 1 + ((i * 37) % 300)
const decayOf = (i: number) => (i % 3 === 0 ? 0.1 : 0)
const floats = (size: number, seed: number) => Float32Array.from(normal([size], seed).data)

/** Parameters after one step of a program that updates those of the list. */
async function stepped(list: readonly number[]): Promise<Map<number, Float32Array>> {
  await using store = new Store(device)
  const program = trace("step", (t) => {
    const [rate, step, clip] = ["rate", "step", "clip"].map((name) => t.input(name, "f32", [])) as [Value, Value, Value]
    for (const i of list) {
      const shape = [sizeOf(i)]
      const [param, m, v] = [
        t.weight(`w${i}`, "f32", shape),
        t.training(`m${i}`, "f32", shape),
        t.training(`v${i}`, "f32", shape),
      ]
      adamW({ param, grad: t.training(`g${i}`, "f32", shape), m, v, rate, step, clip }, { decay: decayOf(i) })
    }
    return {}
  })
  for (const i of list) {
    const slot = (name: string) => ({ name, dtype: "f32", shape: [sizeOf(i)] }) as const
    await store.upload("weight", slot(`w${i}`), floats(sizeOf(i), i))
    await store.upload("training", slot(`g${i}`), floats(sizeOf(i), i + 10_000))
  }
  const executable = await store.compile(program)
  const inputs = { rate: Float32Array.of(1e-2), step: Float32Array.of(3), clip: Float32Array.of(0.5) }
  for (let run = 0; run < 3; run++) await executable.run(inputs) // node by node, recorded, replayed
  const after = list.map(async (i) => [i, new Float32Array((await store.download("weight", `w${i}`)).buffer)] as const)
  return new Map(await Promise.all(after))
}

test("700 parameters of one step get what each gets alone", async (t) => {
  const together = await stepped(Array.from({ length: count }, (_, i) => i))
  for (const i of [0, 1, 2, 63, 300, 511, 512, 513, 699]) {
    t.deepEqual(together.get(i), (await stepped([i])).get(i), `parameter ${i}`)
  }
  t.notDeepEqual(together.get(5), floats(sizeOf(5), 5), "it has moved")
})
