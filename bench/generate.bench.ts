/**
 * Reading a prompt of 512 tokens, and writing one token after another: the demo model, where it is there, and mamba-130m
 * with random weights, f32 and bf16.
 */
import { existsSync } from "node:fs"
import { freemem } from "node:os"
import { load } from "../lib/generate/load.ts"
import type { Model } from "../lib/generate/model.ts"
import { randomModel } from "../lib/generate/random-weights.ts"
import { promptIds } from "../lib/generate/side-by-side.ts"
import { bytesOf } from "../lib/generate/speed.ts"
import { parameterCount } from "../lib/layers/layer.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { modelPreset } from "../lib/models/presets.ts"
import { type Measurement, type Outcome, type Statistics, scaled, timed } from "./measure.ts"
import { limits, shareOf } from "./native.ts"

export const summary = "a prompt of 512 tokens and decoding, the demo model and mamba-130m"

const promptTokens = 512
/** Tokens of one sample of decoding: they come in bursts of up to so many, all but the first of a burst at no cost of their own. */
const together = 64

/** One token more than is run: a session keeps the last one for the run that needs its logits. */
const prompt = (vocab: number) => promptIds(0, { prefill: promptTokens }, vocab)

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
        for (let i = 0; i < together; i++) await tokens.next()
        return (performance.now() - began) / together
      },
      { time: 1000, iterations: 7 },
    )
  } finally {
    await tokens.return(undefined)
  }
}

async function measure(name: string, model: Model): Promise<Measurement[]> {
  const reading = await promptMs(model)
  const writing = await decodeMs(model)
  const { perToken: bytes } = await bytesOf(model, { prefill: promptTokens, decode: 1, batch: 1 })
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

export async function run(): Promise<Outcome> {
  const results: Measurement[] = []
  const notes: string[] = []
  if (existsSync(new URL("../models/demo/config.json", import.meta.url))) {
    await using model = await load("demo")
    results.push(...(await measure(`demo, ${model.matrixDtype} weights, ${model.precision} products`, model)))
  } else notes.push("the demo model is not there: models/demo/config.json is missing")

  // Weights in the store, and packed beside it.
  const needed = 2 * 4 * parameterCount(new PatternModel(modelPreset("mamba-130m")))
  for (const dtype of ["f32", "bf16"] as const) {
    if (freemem() < needed) {
      notes.push(`mamba-130m ${dtype} was left out: it needs ${(needed / 1e9).toFixed(1)} GB of free memory`)
      continue
    }
    await using model = await randomModel("mamba-130m", dtype, { sessions: 2 })
    results.push(...(await measure(`mamba-130m, ${dtype}`, model)))
  }
  return { results, notes }
}
