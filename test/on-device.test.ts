/**
 * A tiny model's life on the device under test: what it says, that training teaches it, the same bits twice, and files. Small
 * enough for the emulator; test/generate and test/train have the rest.
 */
import { mkdtempSync, writeFileSync } from "node:fs"
import { readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import { load } from "../lib/generate/load.ts"
import type { Model } from "../lib/generate/model.ts"
import type { Token } from "../lib/generate/session.ts"
import { type TrainControl, train } from "../lib/train/train.ts"
import { device, storesBf16 } from "./device.ts"
import { tinyModel } from "./generate/tiny.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-device-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

const prompt = [...new TextEncoder().encode("In the beg")]

async function greedy(model: Model, cuts: readonly number[] = []): Promise<Token[]> {
  using session = model.session()
  for (const end of cuts) await session.append(prompt.slice(session.length, end))
  const tokens: Token[] = []
  const rest = prompt.slice(session.length)
  for await (const token of session.tokens(rest, { temperature: 0, maxTokens: 6 })) tokens.push(token)
  return tokens
}

/** The largest difference between log-probabilities of the same tokens; infinite where the tokens differ. */
const apart = (a: readonly Token[], b: readonly Token[]) =>
  Math.max(
    ...a.map(({ id, logprob }, i) => (id === b[i]!.id ? Math.abs(logprob - b[i]!.logprob) : Number.POSITIVE_INFINITY)),
  )

test("a model says which device it is on, and says there what it says on the cpu", async (t) => {
  await using model = await tinyModel()
  await using onCpu = await tinyModel({ device: "cpu" })
  t.is(model.device, device)
  t.is(onCpu.device, "cpu")
  const [here, there] = [await greedy(model), await greedy(onCpu)]
  t.is(here.length, 6)
  t.true(apart(here, there) < 1e-4, `log-probabilities are ${apart(here, there)} apart`)
})

test("the same text in any cuts has the same bits on the device, twice", async (t) => {
  await using model = await tinyModel()
  const whole = await greedy(model)
  t.deepEqual(await greedy(model), whole)
  t.deepEqual(await greedy(model, [1, 4, 7]), whole)
})

test("in bf16 a model is as sure as in f32, to a hundredth of a nat", async (t) => {
  // The tokens are those of f32, taught one by one: rounded models may differ where two tokens are as good as equal.
  await using onCpu = await tinyModel({ device: "cpu", spread: 1 })
  await using model = await tinyModel({ precision: "bf16", spread: 1 })
  const [exact, rounded] = [await greedy(onCpu), await greedy(model)]
  const difference = Math.abs(exact[0]!.logprob - rounded[0]!.logprob)
  // Rounded to 8 bits of significand, activations of an untrained model move its log-probabilities of −5.5 by little.
  t.true(difference < 0.01, `log-probabilities are ${difference} apart`)
  if (storesBf16) t.true(difference > 0, "activations were rounded")
})

const text = join(folder, "text.txt")
writeFileSync(text, "the quick brown fox jumps over the lazy dog. ".repeat(20))
let runs = 0

async function trained(control: TrainControl & { out?: string; precision?: "f32" | "bf16"; stopAfter?: number } = {}) {
  const { out = join(folder, `run-${runs++}`), precision = "f32", stopAfter, ...rest } = control
  const controller = new AbortController()
  const model = { dim: 8, layers: 1, state: 4 }
  const recipe = { model, batch: 2, length: 16, steps: 8, warmup: 0, rate: 0.02, validation: 0, precision }
  const losses: number[] = []
  for await (const event of train({ files: [text], out, device, ...recipe }, { signal: controller.signal, ...rest })) {
    if (event.type !== "step") continue
    losses.push(event.bitsPerByte)
    if (event.step === stopAfter) controller.abort()
  }
  return { losses, out }
}

const weights = (out: string) => readFile(join(out, "model.safetensors"))

for (const precision of ["f32", "bf16"] as const) {
  test(`training in ${precision} lowers the loss and has the same bits twice, interrupted or not`, async (t) => {
    const first = await trained({ precision })
    t.is(first.losses.length, 8)
    t.true(first.losses[7]! < first.losses[0]! - 0.5, `${first.losses}`)
    const begun = await trained({ precision, stopAfter: 3 })
    t.is(begun.losses.length, 3)
    const ended = await trained({ out: begun.out, resume: true })
    t.deepEqual([...begun.losses, ...ended.losses], first.losses)
    t.deepEqual(await weights(begun.out), await weights(first.out))
  })
}

test("a trained model is loaded, saved and loaded again with the same bits", async (t) => {
  const { out } = await trained()
  await using model = await load(out, { device })
  const copy = join(folder, "copy")
  await model.save(copy)
  await using again = await load(copy, { device })
  t.is(again.device, device)
  t.deepEqual(await greedy(again), await greedy(model))
})
