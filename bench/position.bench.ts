/**
 * Decoding late in a sequence: time per token by position, SAMBA beside a Llama of its size. Rings are filled directly, so that
 * no long prompt has to be read first. Draws bench/results/position.svg.
 */
import { mkdirSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { ringInput } from "../lib/generate/layout.ts"
import { Model } from "../lib/generate/model.ts"
import { sampling, samplingInputs } from "../lib/generate/sampling.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { type ModelSize, modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { presets } from "../lib/models/presets.ts"
import type { Executable } from "../lib/native.ts"
import { linePlot } from "../lib/plot.ts"
import { random } from "../test/ops/spec.ts"
import { type Measurement, type Outcome, statistics } from "./measure.ts"

export const summary = "time per token at positions to 65,536: SAMBA's stays, a Llama's grows"

const positions = [2048, 4096, 8192, 16384, 32768, 65536] as const
const first = positions[0]
const last = positions.at(-1)!
const rounds = 40
const target = 1.1

const samba: ModelSize = presets["samba-byte"]
const llama: ModelSize = { ...samba, pattern: ["full", "swiglu"], contextMax: last + 64 }

/** A model with fresh weights whose rings are full of noise, ready to decode at any position. */
async function filled(size: ModelSize): Promise<{ model: Model; step: Executable }> {
  const network = new PatternModel(modelConfig(size))
  const model = new Model(network, "f32", { sessions: 1, device: "cpu" })
  const weights = initialWeights(network, 1)
  for (const [name, { shape }] of allParameters(network)) {
    await model.store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
  }
  const step = await model.step("next", 1)
  const next = random(3)
  for (const slot of step.program.stored("ring")) {
    const noise = Float32Array.from({ length: slot.sizeBytes / 4 / slot.shape[0]! }, () => 2 * next() - 1)
    await model.store.upload("ring", slot, noise, noise.byteLength)
  }
  return { model, step }
}

const greedy = sampling({ temperature: 0, seed: 0 })

/** Milliseconds of one step at a position: what its nodes took. */
async function stepMs({ model, step }: { model: Model; step: Executable }, position: number): Promise<number> {
  const before = await step.profile()
  await step.run({
    ids: Int32Array.of(position % 256),
    segments: Int32Array.of(0, 1, position, 1, 2),
    ...ringInput(model.network, [1]),
    picks: Int32Array.of(0),
    ...samplingInputs(greedy, position + 1, 1, 2),
  })
  const after = await step.profile()
  return after.reduce((total, seconds, i) => total + (seconds - before[i]!) * 1e3, 0)
}

export async function run(): Promise<Outcome> {
  const models = { samba: await filled(samba), llama: await filled(llama) }
  const samples = new Map<string, number[]>()
  const key = (name: string, position: number) => `${name}, position ${position}`
  for (let round = -3; round < rounds; round++) {
    for (const position of positions) {
      for (const [name, one] of Object.entries(models)) {
        const taken = await stepMs(one, position)
        if (round >= 0) samples.set(key(name, position), [...(samples.get(key(name, position)) ?? []), taken])
      }
    }
  }
  for (const { model } of Object.values(models)) await model.dispose()
  const median = (name: string, position: number) => statistics(samples.get(key(name, position))!).median
  const results = [...samples].map(([shape, taken]): Measurement => {
    const [name] = shape.split(",")
    const { value, of } = { value: statistics(taken).median / median(name!, first), of: `its own at ${first}` }
    return { shape, unit: "ms", ...statistics(taken), share: { value, of } }
  })
  draw(Object.keys(models), median)
  const ratio = median("samba", last) / median("samba", first)
  const verdict = ratio <= target ? "met" : "missed"
  return {
    results,
    notes: [
      `target at most ${target} times the time at ${first}: ${verdict}, SAMBA at ${last} takes ${ratio.toFixed(2)} times, the Llama ${(median("llama", last) / median("llama", first)).toFixed(2)} times`,
    ],
  }
}

function draw(names: readonly string[], median: (name: string, position: number) => number): void {
  const labels: Record<string, string> = { samba: "SAMBA, window 256", llama: "Llama of its size" }
  const svg = linePlot({
    title: "Decoding late in a sequence",
    x: "position",
    y: `time per token, over its own at ${first}`,
    logX: true,
    series: names.map((name) => ({
      name: labels[name] ?? name,
      points: positions.map((position) => [position, median(name, position) / median(name, first)] as const),
    })),
  })
  const folder = new URL("results/", import.meta.url)
  mkdirSync(folder, { recursive: true })
  writeFileSync(fileURLToPath(new URL("position.svg", folder)), svg)
}
