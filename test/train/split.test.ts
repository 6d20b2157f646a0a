/** Training in bf16x3, on emulated tiles. */
import { mkdtempSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import type { Precision } from "../../lib/graph/trace.ts"
import type { TrainOptions } from "../../lib/train/options.ts"
import { train } from "../../lib/train/train.ts"

process.env.SELSCAN_AMX = "emulate" // read before the first product

const folder = mkdtempSync(join(tmpdir(), "selscan-split-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))
const text = join(folder, "text.txt")
writeFileSync(text, "the quick brown fox jumps over the lazy dog. ".repeat(200))

const optionsOf = (out: string, precision: Precision): TrainOptions => ({
  files: [text],
  out: join(folder, out),
  model: { dim: 32, layers: 2, state: 4 },
  batch: 2,
  length: 32,
  steps: 20,
  rate: 0.01,
  validation: 0.02,
  precision,
  device: "cpu",
})

async function losses(options: TrainOptions, { resume = false, until = Number.POSITIVE_INFINITY } = {}) {
  const controller = new AbortController()
  const seen: number[] = []
  for await (const event of train(options, { resume, signal: controller.signal })) {
    if (event.type !== "step") continue
    seen.push(event.bitsPerByte)
    if (event.step === until) controller.abort()
  }
  return seen
}

test.serial("a small MambaByte trained in bf16x3 follows its losses in f32, which bf16 leaves", async (t) => {
  const exact = await losses(optionsOf("f32", "f32"))
  const apart = (others: readonly number[]) => Math.max(...others.map((bits, i) => Math.abs(bits - exact[i]!)))
  const [split, halves] = [
    apart(await losses(optionsOf("bf16x3", "bf16x3"))),
    apart(await losses(optionsOf("bf16", "bf16"))),
  ]
  t.log(`bits per byte off by ${split.toExponential(1)} in bf16x3, ${halves.toExponential(1)} in bf16`)
  t.true(split > 0 && split < 2e-4, `${split}`)
  t.true(split < halves / 20, `${split} against ${halves}`)
  t.true(exact.at(-1)! < exact[0]! - 1, `${exact}`)
})

test.serial("a run in bf16x3 that was interrupted goes on bit for bit", async (t) => {
  const whole = await losses(optionsOf("whole", "bf16x3"))
  const options = optionsOf("cut", "bf16x3")
  const begun = await losses(options, { until: 7 })
  const rest = await losses({ files: [], out: options.out, device: "cpu" }, { resume: true })
  t.deepEqual([...begun, ...rest], whole)
})
