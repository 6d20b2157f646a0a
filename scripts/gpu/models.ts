/**
 * Whole models on the device beside the cpu: the demo's most likely text and how sure it is of it, and the losses of a small
 * model in training. Sessions, saving and resuming have tests of their own (test/on-device.test.ts).
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { load } from "../../lib/generate/load.ts"
import type { Token } from "../../lib/generate/session.ts"
import type { Device } from "../../lib/native.ts"
import { train } from "../../lib/train/train.ts"
import { device } from "../../test/device.ts"

const { values } = parseArgs({ options: { quick: { type: "boolean", default: false } } })
const emulated = device === "emulated" // a fiber for every CUDA thread: thousands of times slower
const [tokens, steps] = emulated ? [2, 2] : values.quick ? [40, 20] : [200, 20]
const folder = mkdtempSync(join(tmpdir(), "selscan-gpu-"))
let failures = 0

function judge(what: string, holds: boolean, detail: string): void {
  if (!holds) failures++
  console.log(`${holds ? "ok  " : "FAIL"} ${what}: ${detail}`)
}

const prompt = emulated ? "It" : "In the beginning of the year, the people of the United States"

async function greedy(on: Device, precision: "f32" | "bf16"): Promise<Token[]> {
  await using model = await load("demo", { device: on, precision })
  using session = model.session()
  const said: Token[] = []
  for await (const token of session.tokens(prompt, { temperature: 0, maxTokens: tokens })) said.push(token)
  return said
}

const text = (said: readonly Token[]) => JSON.stringify(Buffer.from(said.map(({ id }) => id)).toString())

/**
 * Tokens that both begin with, and how far apart the log-probabilities are: of those, and of the first two that differ, which
 * are as good as equal where the models agree.
 */
function agreement(a: readonly Token[], b: readonly Token[]): { same: number; apart: number } {
  const differs = a.findIndex(({ id }, i) => id !== b[i]?.id)
  const same = differs < 0 ? a.length : differs
  const until = a.slice(0, same + 1)
  return { same, apart: Math.max(...until.map(({ logprob }, i) => Math.abs(logprob - b[i]!.logprob))) }
}

async function demo(): Promise<void> {
  const there = await greedy("cpu", "f32")
  for (const precision of ["f32", "bf16"] as const) {
    const here = await greedy(device, precision)
    const { same, apart } = agreement(here, there)
    // What f32 sums in another order differ by, and what rounding to 8 bits of significand does to six layers.
    const most = precision === "f32" ? 2e-3 : 0.25
    const detail = `${same} of ${tokens} tokens are the cpu's, log-probabilities to ${apart.toExponential(1)}, ${text(here)}`
    judge(`the demo in ${precision}, most likely text`, here.length === tokens && apart <= most, detail)
    const again = await greedy(device, precision)
    judge(`the demo in ${precision}, twice`, JSON.stringify(again) === JSON.stringify(here), "the same bits")
  }
}

/** Bits per byte of a text that neither wrote: every token's probability counts, whichever is the likeliest. */
async function scores(): Promise<void> {
  const [known, most] = [emulated ? "A few words." : sample().slice(0, 20_000), { f32: 1e-3, bf16: 2e-2 }]
  const score = async (on: Device, precision: "f32" | "bf16") => {
    await using model = await load("demo", { device: on, precision })
    return await model.bitsPerByte(known) // awaited: the model is disposed after
  }
  const there = await score("cpu", "f32")
  for (const precision of ["f32", "bf16"] as const) {
    const here = await score(device, precision)
    const detail = `${here.toFixed(5)} bits per byte, the cpu ${there.toFixed(5)}`
    judge(`the demo in ${precision}, a given text`, Math.abs(here - there) <= most[precision] * there, detail)
  }
}

/** Sentences that are alike and not the same, so that there is something to learn in 20 steps. */
function sample(): string {
  const [who, does, what] = [
    ["the people", "a nation", "the congress", "our union", "every state"],
    ["asks for", "keeps", "has made", "is given", "will defend"],
    ["peace", "the law", "its commerce", "a treaty", "the public debt", "free schools"],
  ]
  const pick = (words: readonly string[], i: number) => words[i % words.length]!
  return Array.from(
    { length: 2000 },
    (_, i) => `${pick(who!, i * i)} ${pick(does!, i * 3 + 1)} ${pick(what!, i * 7)}.\n`,
  ).join("")
}

async function losses(on: Device, precision: "f32" | "bf16", out: string): Promise<number[]> {
  const size = emulated ? { dim: 8, layers: 1 } : { dim: 64, layers: 2 }
  const recipe = {
    model: size,
    batch: 2,
    length: emulated ? 16 : 128,
    steps,
    warmup: 2,
    validation: 0,
    saveEvery: 1000,
  }
  const found: number[] = []
  const run = train({ files: [join(folder, "sample.txt")], out: join(folder, out), device: on, precision, ...recipe })
  for await (const event of run) if (event.type === "step") found.push(event.bitsPerByte)
  return found
}

async function training(): Promise<void> {
  writeFileSync(join(folder, "sample.txt"), sample())
  for (const precision of ["f32", "bf16"] as const) {
    const there = await losses("cpu", precision, `cpu-${precision}`)
    const here = await losses(device, precision, `here-${precision}`)
    const again = await losses(device, precision, `again-${precision}`)
    const apart = Math.max(...here.map((loss, i) => Math.abs(loss - there[i]!) / there[i]!))
    // The cpu stores activations in f32 whatever the precision: in bf16 the device rounds more.
    const most = precision === "f32" ? 2e-3 : 3e-2
    const detail = `${here[0]!.toFixed(4)} to ${here.at(-1)!.toFixed(4)} bits per byte, ${apart.toExponential(1)} from the cpu's`
    judge(`${steps} steps of training in ${precision}`, here.length === steps && apart <= most, detail)
    judge(`${steps} steps of training in ${precision}, twice`, `${again}` === `${here}`, "the same bits")
  }
}

try {
  await demo()
  await scores()
  await training()
} finally {
  rmSync(folder, { recursive: true, force: true })
}
console.log(failures === 0 ? "the demo and training agree with the cpu" : `${failures} comparisons failed`)
process.exitCode = failures === 0 ? 0 : 1
