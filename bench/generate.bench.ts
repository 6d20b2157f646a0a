/**
 * Reading a prompt of 512 tokens, and writing one token after another: the demo model, where it is there, and mamba-130m
 * with fresh weights, f32 and bf16.
 */
import { existsSync } from "node:fs"
import { freemem } from "node:os"
import { f32ToBf16 } from "../lib/checkpoint/halves.ts"
import { load } from "../lib/generate/load.ts"
import { Model } from "../lib/generate/model.ts"
import { allParameters, parameterCount } from "../lib/layers/layer.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { modelPreset } from "../lib/models/presets.ts"
import { type Measurement, type Outcome, type Statistics, scaled, timed } from "./measure.ts"
import { limits, shareOf } from "./native.ts"

export const summary = "a prompt of 512 tokens and decoding, the demo model and mamba-130m"

const promptTokens = 512

/** One token more than is run: a session keeps the last one for the run that needs its logits. */
const prompt = (vocab: number) => Array.from({ length: promptTokens + 1 }, (_, i) => (i * 7919 + 101) % vocab)

async function promptMs(model: Model): Promise<Statistics> {
  const ids = prompt(model.network.vocab)
  return timed(async () => {
    using session = model.session()
    const began = performance.now()
    await session.append(ids)
    return performance.now() - began
  })
}

async function decodeMs(model: Model): Promise<Statistics> {
  using session = model.session()
  const tokens = session.tokens(prompt(model.network.vocab), { maxTokens: 1e6, temperature: 0.8, topP: 0.95, seed: 1 })
  try {
    return await timed(
      async () => {
        const began = performance.now()
        await tokens.next()
        return performance.now() - began
      },
      { time: 3000, iterations: 20 },
    )
  } finally {
    await tokens.return(undefined)
  }
}

async function measure(name: string, model: Model): Promise<Measurement[]> {
  const reading = await promptMs(model)
  const writing = await decodeMs(model)
  // One token reads every weight once.
  const bytes = [...allParameters(model.network).values()].reduce(
    (total, { shape, matrix }) =>
      total + shape.reduce((a, b) => a * b, 1) * (matrix && model.matrixDtype === "bf16" ? 2 : 4),
    0,
  )
  const { share } = shareOf(limits(), { milliseconds: writing.median, bytes })
  const perSecond = (milliseconds: number) => ({ value: 1e3 / milliseconds, unit: "tokens/s" })
  return [
    {
      shape: `${name}: prompt of ${promptTokens}`,
      unit: "ms per token",
      ...scaled(reading, 1 / promptTokens),
      rate: perSecond(reading.median / promptTokens),
    },
    { shape: `${name}: decoding`, unit: "ms per token", ...writing, bytes, rate: perSecond(writing.median), share },
  ]
}

/** mamba-130m with the weights that training would begin with. */
async function fresh(dtype: "f32" | "bf16"): Promise<Model> {
  const network = new PatternModel(modelPreset("mamba-130m"))
  const model = new Model(network, dtype, { sessions: 2 })
  const weights = initialWeights(network, 1)
  for (const [name, { shape, matrix }] of allParameters(network)) {
    const floats = weights.get(name)!
    weights.delete(name)
    await (matrix && dtype === "bf16"
      ? model.store.upload("weight", { name, dtype: "bf16", shape }, f32ToBf16(floats))
      : model.store.upload("weight", { name, dtype: "f32", shape }, floats))
  }
  return model
}

export async function run(): Promise<Outcome> {
  const results: Measurement[] = []
  const notes: string[] = []
  if (existsSync(new URL("../models/demo/config.json", import.meta.url))) {
    await using model = await load("demo")
    results.push(...(await measure(`demo, ${model.matrixDtype} weights, ${model.precision} products`, model)))
  } else notes.push("the demo model is not there: models/demo/config.json is missing")

  // Weights on the host, in the store, and packed beside it.
  const needed = 3 * 4 * parameterCount(new PatternModel(modelPreset("mamba-130m")))
  for (const dtype of ["f32", "bf16"] as const) {
    if (freemem() < needed) {
      notes.push(`mamba-130m ${dtype} was left out: it needs ${(needed / 1e9).toFixed(1)} GB of free memory`)
      continue
    }
    await using model = await fresh(dtype)
    results.push(...(await measure(`mamba-130m, ${dtype}`, model)))
  }
  return { results, notes }
}
