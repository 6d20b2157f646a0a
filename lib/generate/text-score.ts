/**
 * Log-probabilities of a text, and what they say of the model that gives them.
 */
import { expect } from "../errors.ts"
import { byteCodec } from "../text/codec.ts"
import type { Model } from "./model.ts"
import { guest } from "./places.ts"
import { bitsPerByte, checkScoreOptions, type ScoreOptions, scoreRowsFor, tokenLosses } from "./score.ts"
import type { Prompt } from "./session.ts"

/** What a model thinks of a text, token by token. */
export interface Score {
  readonly ids: readonly number[]
  /** Natural logarithms of the tokens' probabilities, each given those before it; null for a first one that nobody predicts. */
  readonly logprobs: readonly (number | null)[]
  /** Their sum. */
  readonly total: number
  /** Of texts whose bytes are known; a first token that nobody predicts is charged as one of as many as the vocabulary has. */
  readonly bitsPerByte?: number
}

/**
 * A score of the losses of all tokens, of which a first one may not have been judged.
 * @throws NOT_FINITE for losses that are none
 */
export function textScore(
  model: Model,
  text: Prompt,
  ids: readonly number[],
  losses: Float32Array,
  judged: Judged,
): Score {
  checkFinite("score", losses, judged)
  const logprobs = Array.from(losses, (loss, i) => (i === 0 && judged === "rest" ? null : 0 - loss))
  const total = logprobs.reduce<number>((sum, logprob) => sum + (logprob ?? 0), 0)
  const bytes = bytesOf(model, text)
  if (bytes === undefined) return { ids, logprobs, total }
  return { ids, logprobs, total, bitsPerByte: bitsPerByte(losses, judged, { bytes, vocab: choices(model) }) }
}

/** model.score(). */
export async function scoreText(model: Model, text: Prompt, options: ScoreOptions): Promise<Score> {
  const ids = checkText("score", model, text, options)
  return textScore(model, text, ids, await lossesOf(model, ids, options), judgedBy(model))
}

/** model.bitsPerByte(). */
export async function bitsPerByteOf(model: Model, text: Prompt, options: ScoreOptions): Promise<number> {
  model.textCodec("bitsPerByte")
  const ids = checkText("bitsPerByte", model, text, options)
  const bytes = bytesOf(model, text)
  expect(
    bytes !== undefined,
    "BAD_INPUT",
    () => "bitsPerByte: a text is expected for a model whose tokens are not bytes, got ids; give a string",
  )
  const losses = await lossesOf(model, ids, options)
  checkFinite("bitsPerByte", losses, judgedBy(model))
  return bitsPerByte(losses, judgedBy(model), { bytes, vocab: choices(model) })
}

/** Whether all tokens were judged, or all but the first. */
type Judged = "all" | "rest"

const judgedBy = ({ network }: Model): Judged => (network.patches ? "all" : "rest")

/** Bytes that a text has; undefined where only a tokenizer knows. */
const bytesOf = ({ codec }: Model, text: Prompt): number | undefined =>
  typeof text === "string"
    ? Buffer.byteLength(text)
    : codec === byteCodec || (codec && text instanceof Uint8Array)
      ? text.length
      : undefined

/** Among how many tokens a first one that nobody predicts is one: a token that every text begins with is no choice. */
const choices = ({ codec, network }: Model): number =>
  codec && codec.encode("", { begin: true }).length > 0 ? 1 : network.vocab

async function lossesOf(model: Model, ids: readonly number[], options: ScoreOptions): Promise<Float32Array> {
  const holder = guest()
  const place = await model.places.enter(holder)
  try {
    const rows = Math.min(ids.length, options.context ?? ids.length)
    const executable = await model.scorer(scoreRowsFor(rows), 0)
    return await tokenLosses({ model: model.network, executable }, ids, place, options)
  } finally {
    model.places.release(holder)
  }
}

/** Ids of a text that can be judged so. */
function checkText(where: string, model: Model, text: Prompt, options: ScoreOptions): number[] {
  checkScoreOptions(where, options, ["signal", "onProgress", "context"])
  const { context } = options
  const { contextMax = Number.POSITIVE_INFINITY } = model.network
  expect(
    context === undefined || (Number.isSafeInteger(context) && context >= 1),
    "BAD_OPTION",
    () => `${where}: context is a whole number of at least 1, got ${context}`,
  )
  expect(
    (context ?? 0) <= contextMax,
    "BAD_OPTION",
    () => `${where}: context is at most the model's contextMax, ${contextMax}, got ${context}`,
  )
  const ids = model.tokens(text, true)
  const unit = model.codec === byteCodec ? "byte" : "token"
  expect(ids.length > 0, "BAD_INPUT", () => `${where}: a text of at least one ${unit} is needed, got an empty one`)
  expect(
    (context ?? ids.length - 1) <= contextMax, // the last one is judged, and never read
    "BAD_INPUT",
    () =>
      `${where}: a text of at most contextMax + 1 = ${contextMax + 1} ${unit}s is expected without a context, got ${ids.length}; give a context of at most ${contextMax}, or load the model with a larger contextMax`,
  )
  return ids
}

function checkFinite(where: string, losses: Float32Array, judged: Judged): void {
  const bad = losses.findIndex((loss, i) => !Number.isFinite(loss) && (i > 0 || judged === "all"))
  expect(
    bad < 0,
    "NOT_FINITE",
    () => `${where}: losses are expected to be finite, got ${losses[bad]} at token ${bad}; check the model's weights`,
  )
}
