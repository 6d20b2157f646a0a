/**
 * How much memory a training batch needs; the planner's own numbers, nothing is run.
 */
import test from "ava"
import { arenaBytes, materialisedBytes } from "../bench/memory.bench.ts"

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
