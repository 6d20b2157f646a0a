import type { CAC } from "cac"
import { expect } from "../errors.ts"
import type { Model } from "../generate/model.ts"
import type { Prompt } from "../generate/session.ts"
import type { Score } from "../generate/text-score.ts"
import { readWhole } from "../train/data.ts"
import {
  modelHelp,
  openModel,
  type Progress,
  progress,
  type RunFlags,
  readStdin,
  runOptions,
  tokenizerOption,
  typedIds,
} from "./common.ts"
import { tokenLine } from "./generate.ts"
import { interruptible } from "./interrupt.ts"

interface Flags extends RunFlags {
  model: string
  file?: string[]
  stdin?: boolean
  ids?: string
  given?: string
  context?: number
  tokens?: boolean
}

/** A text to score, and what it is called. */
interface Named {
  readonly name: string
  readonly text: Prompt
}

/** `selscan score [text]`: how probable a model finds a text, token by token. */
export function scoreCommand(cli: CAC): void {
  const command = cli
    .command("score [text]", "Log-probabilities of a text under a model, and its bits per byte")
    .option("--file <...file>", "A text to score; may be given several times")
    .option("--stdin", "Read the text from standard input")
    .option("--ids <ids>", 'The text as ids, "1 2 3", for any model')
    .option("--given <text>", "What comes before the text; it is not scored")
    .option("--context <n>", "Tokens after which the state is emptied (never)")
    .option("--tokens", "Print every token: id, log-probability and text")
    .option("--model <model>", modelHelp, { default: "demo" })
  runOptions(tokenizerOption(command))
    .option("--json", "Print one object: model, and of each of texts name, count, total (nats) and bitsPerByte")
    .example('selscan score "It is a truth universally acknowledged" --tokens')
    .example('selscan score " Paris" --given "The capital of France is" --json')
    .action((text: string | undefined, flags: Flags) => interruptible((signal) => score(text, flags, signal)))
}

async function score(word: string | undefined, flags: Flags, signal: AbortSignal): Promise<number> {
  const texts = await textsOf(word, flags, signal)
  const { given, context, model: name, json } = flags
  expect(given === undefined || context === undefined, "BAD_OPTION", () => {
    return "score: --context is for texts that nothing comes before, got --given too; leave one out"
  })
  await using model = await openModel(name, flags, signal)
  const bar = progress("tokens", flags)
  const scored: object[] = []
  try {
    for (const one of texts) {
      const result = await scoreOne(model, one.text, flags, bar, signal)
      scored.push(summary(model, one, result, flags))
      if (!json) print(model, one, result, flags)
    }
  } finally {
    bar.stop()
  }
  if (json) console.log(JSON.stringify({ model: name, ...(given !== undefined && { given }), texts: scored }))
  return 0
}

/** What was given to score: a word, standard input, ids or files. */
async function textsOf(word: string | undefined, { stdin, ids, file }: Flags, signal: AbortSignal): Promise<Named[]> {
  const given = [word !== undefined, stdin, ids !== undefined, file !== undefined].filter(Boolean).length
  expect(given === 1, "BAD_OPTION", () => {
    return `score: one text is expected, got ${given}; write it after the command, or give --file, --stdin or --ids`
  })
  if (file !== undefined) return await Promise.all(file.map(async (name) => ({ name, text: await readWhole(name) })))
  if (ids !== undefined) return [{ name: "ids", text: typedIds("score", ids) }]
  return [stdin ? { name: "stdin", text: await readStdin("score", signal) } : { name: "text", text: word! }]
}

async function scoreOne(
  model: Model,
  text: Prompt,
  { given, context }: Flags,
  bar: Progress,
  signal: AbortSignal,
): Promise<Score> {
  const total = bar.visible ? model.tokens(text, given === undefined).length : 0
  const options = { signal, onProgress: (done: number) => bar.update(done, total) }
  if (given === undefined) return await model.score(text, { ...options, context })
  using session = model.session()
  await session.append(given, { signal })
  return await session.score(text, options)
}

function summary(model: Model, { name }: Named, score: Score, flags: Flags) {
  const { ids, logprobs, total, bitsPerByte } = score
  const tokens = ids.map((id, i) => ({
    id,
    logprob: logprobs[i]!,
    ...(model.codec && { text: model.decode([id], { special: true, within: true }) }),
  }))
  return {
    name,
    count: ids.length,
    total,
    ...(bitsPerByte !== undefined && { bitsPerByte }),
    ...(flags.tokens && { tokens }),
  }
}

function print(model: Model, { name }: Named, { ids, logprobs, total, bitsPerByte }: Score, flags: Flags): void {
  if (flags.tokens) for (const [i, id] of ids.entries()) console.log(tokenLine(model, id, logprobs[i]!))
  const bits = bitsPerByte === undefined ? "" : `, ${bitsPerByte.toFixed(4)} bits per byte`
  console.log(`${name}: ${total.toFixed(4)} nats over ${ids.length} tokens${bits}`)
}
