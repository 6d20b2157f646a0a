/**
 * How the next token is chosen: options, their defaults and limits, and their form on the device.
 */
import { checkOptions, expect } from "../errors.ts"

export interface SamplingOptions {
  /** Divides the logits; 0 always takes the most probable token. Default 1. */
  readonly temperature?: number
  /** Keep the K most probable tokens; 0 keeps all. Default 0. */
  readonly topK?: number
  /** Keep the smallest set of tokens that holds this much probability. Default 1: all. */
  readonly topP?: number
  /** Keep tokens at least this probable relative to the most probable one. Default 0: all. */
  readonly minP?: number
  /** Divides (or multiplies, below zero) the logits of tokens seen before. Default 1: none. */
  readonly repetitionPenalty?: number
  /** Subtracted from a token's logit for each time it was generated. Default 0. */
  readonly frequencyPenalty?: number
  /** Subtracted once from the logits of tokens generated before. Default 0. */
  readonly presencePenalty?: number
  /** Whole number from 0 to 2⁵³ − 1. The same seed, prompt and model give the same text. Default: drawn anew each time. */
  readonly seed?: number
}

export const samplingNames: readonly (keyof SamplingOptions)[] = [
  "temperature",
  "topK",
  "topP",
  "minP",
  "repetitionPenalty",
  "frequencyPenalty",
  "presencePenalty",
  "seed",
]

/** Options with every value settled. */
export type Sampling = Required<SamplingOptions>

/** Fills in defaults and checks every value. Throws BAD_OPTION naming the option and its limits. */
export function sampling(options: SamplingOptions): Sampling {
  checkOptions("generate", options, samplingNames)
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
  const all: Sampling = {
    temperature: 1,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    frequencyPenalty: 0,
    presencePenalty: 0,
    seed: Math.floor(Math.random() * 2 ** 53),
    ...given,
  }
  range("temperature", all.temperature, 0, 1000)
  range("topP", all.topP, Number.MIN_VALUE, 1)
  range("minP", all.minP, 0, 1)
  range("repetitionPenalty", all.repetitionPenalty, 0.01, 100)
  range("frequencyPenalty", all.frequencyPenalty, -100, 100)
  range("presencePenalty", all.presencePenalty, -100, 100)
  whole("topK", all.topK, 2 ** 31 - 1)
  whole("seed", all.seed, Number.MAX_SAFE_INTEGER)
  return all
}

/** The inputs of the sample op for one sample. `from` and `to` are slots of the penalty history. */
export function samplingInputs(options: Sampling, position: number, from: number, to: number) {
  const { temperature, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, topK, seed } = options
  return {
    settings: Float32Array.of(temperature, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty),
    limits: Int32Array.of(topK, seed | 0, Math.floor(seed / 2 ** 32), from, to),
    position: Int32Array.of(position),
  }
}

function range(name: string, value: number, low: number, high: number): void {
  expect(
    typeof value === "number" && value >= low && value <= high,
    "BAD_OPTION",
    () => `generate: ${name} is a number from ${low} to ${high}, got ${value}`,
    { option: name },
  )
}

function whole(name: string, value: number, high: number): void {
  expect(
    Number.isSafeInteger(value) && value >= 0 && value <= high,
    "BAD_OPTION",
    () => `generate: ${name} is a whole number from 0 to ${high}, got ${value}`,
    { option: name },
  )
}
