import test from "ava"
import { productProbe, readingProbe, spread } from "../../lib/generate/limits.ts"
import { Store } from "../../lib/native.ts"
import { device } from "../device.ts"

test("probes say how much they move or compute, and how much of it a second", async (t) => {
  await using store = new Store(device)
  const reading = await readingProbe(store, 4 << 10)
  t.is(reading.amount, 4 << 10)
  const probes = [reading, await productProbe(store, "f32", [3, 8, 16]), await productProbe(store, "bf16", [3, 8, 16])]
  for (const probe of probes) {
    for (const rate of [await probe.run(), await probe.run()]) t.true(rate > 0 && Number.isFinite(rate))
    await t.throwsAsync(probe.run(AbortSignal.abort()), { code: "ABORTED" })
  }
  t.is(probes[1]!.amount, 2 * 3 * 8 * 16)
})

test("the middle of an even number of values lies between two of them, and values stay in their order", (t) => {
  const values = [4, 1, 3, 2]
  t.deepEqual(spread(values), { median: 2.5, min: 1, max: 4 })
  t.deepEqual(spread([7]), { median: 7, min: 7, max: 7 })
  t.deepEqual(values, [4, 1, 3, 2])
})
