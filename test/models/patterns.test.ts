import test from "ava"
import { ringInput } from "../../lib/generate/layout.ts"
import type { Model } from "../../lib/generate/model.ts"
import { stepProgram } from "../../lib/generate/programs.ts"
import { sampling, samplingInputs } from "../../lib/generate/sampling.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { modelPreset, type Preset } from "../../lib/models/presets.ts"
import { keyTile } from "../../lib/ops/attention.ts"
import { tinyModel } from "../generate/tiny.ts"
import { againstSnapshot } from "./snapshot.ts"

const printed: readonly Preset[] = [
  "samba-1.7b",
  "sliding-gla-438m",
  "sliding-retnet-446m",
  "llama-3-8b",
  "mistral-7b",
  "falcon-mamba-7b",
]

for (const name of printed) {
  test(`${name} traces to the program of its snapshot`, (t) => {
    const model = new PatternModel(modelPreset(name))
    const rings = { count: 2, rowsMost: 512 }
    const began = performance.now()
    const program = stepProgram(model, "next", { rows: 1, slots: 4, rings, matrixDtype: "bf16", precision: "bf16" })
    t.log(`${program.nodes.length} nodes in ${(performance.now() - began).toFixed(1)} ms`)
    againstSnapshot(t, name, program.print(), model.config.pattern.length)
  })
}

const late = 65536

/** The token after one at a late position, its rings holding NaN but for the positions in [from, late). */
async function stepAmongNaN(model: Model, from: number): Promise<{ id: number; logprob: number }> {
  const step = await model.step("next", 1)
  for (const slot of step.program.stored("ring")) {
    const [, , capacity = 1, size = 1] = slot.shape
    const isSeen = (position: number) => (((late - 1 - position) % capacity) + capacity) % capacity <= late - 1 - from
    const values = Float32Array.from({ length: slot.sizeBytes / 4 }, (_, i) =>
      isSeen(Math.floor(i / size) % capacity) ? Math.sin(i) : Number.NaN,
    )
    await model.store.upload("ring", slot, values)
  }
  const { ids, logprobs } = await step.run({
    ids: Int32Array.of(65),
    segments: Int32Array.of(0, 1, late, 1, 2),
    ...ringInput(model.network, [1]),
    picks: Int32Array.of(0),
    ...samplingInputs(sampling({ temperature: 0, seed: 0 }), late + 1, 1, 2),
  })
  return { id: ids![0]!, logprob: logprobs![0]! }
}

test("a late token reads the blocks of its window and no others", async (t) => {
  const window = 100
  await using model = await tinyModel({ kind: "samba", window })
  const first = late - window + 1
  const { id, logprob } = await stepAmongNaN(model, Math.floor(first / keyTile) * keyTile)
  t.true(id >= 0 && Number.isFinite(logprob), "nothing outside the blocks of the window was read")
  t.is((await stepAmongNaN(model, first + 1)).id, -1, "the first key of the window is read: NaN there is noticed")
})

test("what a session keeps does not grow with its text", async (t) => {
  await using model = await tinyModel({ kind: "samba" })
  using session = model.session()
  await session.append(new Uint8Array(600))
  const { states, rings } = await model.memory()
  await session.append(new Uint8Array(5000))
  const after = await model.memory()
  t.true(rings > 0)
  t.deepEqual([after.states, after.rings], [states, rings])
})
