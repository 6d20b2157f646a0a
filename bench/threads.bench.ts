/**
 * The pool of threads: what a section costs, on idle cores and beside processes that never sleep (bench/native/threads.cpp); a
 * model alone, beside such a process and beside another model; a training step alone and beside such a process.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import type { Model } from "../lib/generate/model.ts"
import { randomModel } from "../lib/generate/random-weights.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { devices, Store } from "../lib/native.ts"
import { batchProgram, optimizerDefaults } from "../lib/train/program.ts"
import { type Measurement, type Outcome, ratios, statistics } from "./measure.ts"
import { nativeBench } from "./native.ts"

export const summary = "what the pool of threads costs, alone, beside busy processes and with two models at once"

interface ThreadTimes {
  readonly threads: number
  readonly busy: number
  readonly pauses: readonly number[]
  readonly medians: readonly number[]
  readonly p99s: readonly number[]
  readonly smallOne: readonly number[]
  readonly smallAll: readonly number[]
  readonly largeOne: readonly number[]
  readonly largeAll: readonly number[]
}

function sections(threads: number, busy: number): Measurement[] {
  const times = nativeBench<ThreadTimes>("threads", "--threads", String(threads), "--busy", String(busy))
  const of = `${threads} threads${busy === 0 ? "" : `, ${busy} busy`}`
  const empty = times.pauses.map((pause, i) => {
    const [median, p99] = [times.medians[i]!, times.p99s[i]!]
    return { shape: `${of}: an empty section after ${pause} µs, to its 99%`, unit: "µs", median, min: median, max: p99 }
  })
  return [
    ...empty,
    { shape: `${of}: 24 tasks of 1 µs over one thread`, unit: "×", ...ratios(times.smallOne, times.smallAll) },
    { shape: `${of}: 32 tasks of 50 µs over one thread`, unit: "×", ...ratios(times.largeOne, times.largeAll) },
  ]
}

/** Runs `work` beside a process of this priority that computes without end. */
async function besideBusy<T>(work: () => Promise<T>): Promise<T> {
  const child = spawn(process.execPath, ["-e", "console.log(1); for (;;);"], { stdio: ["ignore", "pipe", "inherit"] })
  try {
    await once(child.stdout, "data")
    return await work()
  } finally {
    child.kill("SIGKILL")
    await once(child, "close")
  }
}

const [tokens, rounds] = [48, 7]

/** Milliseconds in which each model writes its tokens, all at once. */
async function decodeMs(models: readonly Model[]): Promise<number> {
  const sessions = models.map((model) => model.session())
  try {
    const write = async (session: (typeof sessions)[number]) => {
      for await (const _ of session.tokens([1, 2, 3], { maxTokens: tokens, temperature: 0 }));
    }
    const began = performance.now()
    await Promise.all(sessions.map(write))
    return performance.now() - began
  } finally {
    for (const session of sessions) session.dispose()
  }
}

async function decoding(): Promise<Measurement[]> {
  await using one = await randomModel("mamba-130m")
  await using other = await randomModel("mamba-130m")
  const [alone, beside, both]: number[][] = [[], [], []]
  for (let round = -1; round < rounds; round++) {
    const times = [
      await decodeMs([one]),
      await besideBusy(() => decodeMs([one])),
      (await decodeMs([one, other])) / 2,
    ] as const
    if (round < 0) continue // packs the weights
    alone!.push(times[0] / tokens)
    beside!.push(times[1] / tokens)
    both!.push(times[2] / tokens)
  }
  const of = "mamba-130m, bf16, decoding"
  return [
    { shape: of, unit: "ms per token", ...statistics(alone!) },
    { shape: `${of}: beside a busy process, speed over alone`, unit: "×", ...ratios(alone!, beside!) },
    { shape: `${of}: two models at once, their sum over one alone`, unit: "×", ...ratios(alone!, both!) },
  ]
}

async function training(): Promise<Measurement[]> {
  const [batch, length] = [8, 512]
  const rows = batch * length
  const model = new PatternModel(modelConfig({ dim: 256, layers: 3, vocab: 256 }))
  await using store = new Store("cpu")
  const shape = { batch, length, streams: batch, recompute: false, precision: "bf16" } as const
  const step = await store.compile(batchProgram(model, shape, "update", optimizerDefaults))
  const weights = initialWeights(model, 1)
  for (const [name, { shape }] of allParameters(model)) {
    await store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
  }
  const ids = Int32Array.from({ length: rows }, (_, i) => 32 + ((i * 7919) % 90))
  const lines = Array.from({ length: batch }, (_, i) => [i * length, (i + 1) * length, 0, 0, i + 1])
  const segments = Int32Array.from(lines.flat())
  const stepMs = async () => {
    const began = performance.now()
    const scale = Float32Array.of(1 / rows)
    await step.run({ ids, targets: ids, segments, scale, rate: Float32Array.of(1e-3), step: Float32Array.of(1) })
    return performance.now() - began
  }
  const [alone, beside]: number[][] = [[], []]
  for (let round = -1; round < rounds; round++) {
    const times = [await stepMs(), await besideBusy(stepMs)] as const
    if (round < 0) continue
    alone!.push(times[0])
    beside!.push(times[1])
  }
  const of = `a training step, MambaByte 256 × 3, ${batch} × ${length}, bf16`
  return [
    { shape: of, unit: "ms", ...statistics(alone!) },
    { shape: `${of}: beside a busy process, speed over alone`, unit: "×", ...ratios(alone!, beside!) },
  ]
}

export async function run(): Promise<Outcome> {
  const threads = devices()[0]!.threads!
  const results = [
    ...sections(threads, 0),
    ...sections(threads, 1),
    ...sections(threads, 2),
    ...sections(2 * threads, 0),
    ...(await decoding()),
    ...(await training()),
  ]
  const notes = ["a busy process takes a core: beside it, a half of the speed of two is left at least"]
  return { results, notes }
}
