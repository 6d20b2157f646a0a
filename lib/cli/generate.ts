import type { CAC } from "cac"
import { expect } from "../errors.ts"
import type { Model } from "../generate/model.ts"
import type { GenerateOptions, Prompt, Session } from "../generate/session.ts"
import { modelHelp, openModel, type RunFlags, readStdin, runOptions, tokenizerOption, typedIds } from "./common.ts"
import { interruptible } from "./interrupt.ts"

interface Flags extends RunFlags {
  model: string
  stdin?: boolean
  ids?: string
  chat?: boolean
  system?: string
  logprobs?: boolean
  maxTokens: number
  temperature: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  frequencyPenalty?: number
  presencePenalty?: number
  seed?: number
  stop?: string[]
}

/** `selscan generate [prompt]`: writes text as it is generated. */
export function generateCommand(cli: CAC): void {
  const command = cli
    .command("generate [prompt]", "Generate text after a prompt")
    .option("--stdin", "Read the prompt from standard input")
    .option("--ids <ids>", 'The prompt as ids, "1 2 3"; a model without a tokenizer answers with ids')
    .option("--chat", "The prompt is a message, written as the model's chat template has it; print the reply alone")
    .option("--system <text>", "A system message before that of --chat")
    .option("--model <model>", modelHelp, { default: "demo" })
    .option("--max-tokens <n>", "Tokens to generate at most; of demo they are bytes", { default: 400 })
    .option("--temperature <x>", "Divides the logits; 0 is greedy", { default: 0.8 })
    .option("--top-k <n>", "Keep the k most probable tokens (0: all)")
    .option("--top-p <x>", "Keep the smallest set with this probability (1: all)")
    .option("--min-p <x>", "Keep tokens at least this probable relative to the best (0: all)")
    .option("--repetition-penalty <x>", "Divides the logits of tokens seen before (1: none)")
    .option("--frequency-penalty <x>", "Subtracted for each time a token was generated")
    .option("--presence-penalty <x>", "Subtracted once for tokens generated before")
    .option("--seed <n>", "The same seed gives the same text")
    .option("--stop <...text>", "End before this text; may be given several times")
    .option("--logprobs", "Print a line for every token: id, log-probability and text")
  runOptions(tokenizerOption(command))
    .option("--json", "Print one object: prompt, text or ids, tokens, seconds")
    .example('selscan generate "In the beginning" --max-tokens 200')
    .example('selscan generate --chat "Name a river." --model models/chat --temperature 0')
    .action((prompt: string | undefined, flags: Flags) => interruptible((signal) => generate(prompt, flags, signal)))
}

async function generate(word: string | undefined, flags: Flags, signal: AbortSignal): Promise<number> {
  const prompt = await promptOf(word, flags, signal)
  const shown = prompt instanceof Uint8Array ? Buffer.from(prompt).toString() : prompt
  await using model = await openModel(flags.model, flags, signal)
  // Ids are generated one by one where they are what is shown.
  const byToken = flags.logprobs === true || model.codec === undefined
  expect(!byToken || flags.stop === undefined, "BAD_OPTION", () => {
    return `generate: --stop is for text, got it ${flags.logprobs ? "with --logprobs" : "for a model without a tokenizer"}; leave it out`
  })
  expect(model.codec !== undefined || flags.ids !== undefined, "BAD_INPUT", () => {
    return "generate: ids are expected for a model without a tokenizer, got text; give --ids, or put its tokenizer.json into the folder"
  })
  using session = model.session()
  const began = performance.now()
  const given = flags.chat ? conversation(model, String(shown), flags.system) : prompt
  const length = lengthOf(model, given, flags)
  const answer = byToken
    ? await writeTokens(model, session, given, flags, signal)
    : await writeText(session, given, typeof shown === "string" && !flags.chat ? shown : "", flags, signal)
  const [tokens, seconds] = [session.length - length, (performance.now() - began) / 1000]
  if (flags.json) console.log(JSON.stringify({ prompt: shown, ...answer, tokens, seconds }))
  return 0
}

/** What was given as a prompt: one of a word, standard input and ids. */
async function promptOf(
  word: string | undefined,
  { stdin, ids, chat, system }: Flags,
  signal: AbortSignal,
): Promise<Prompt> {
  const given = [word !== undefined, stdin, ids !== undefined].filter(Boolean).length
  expect(given === 1, "BAD_OPTION", () => {
    return `generate: one prompt is expected, got ${given}; write it after the command, or give --stdin to read it from standard input, or --ids`
  })
  expect(!chat || ids === undefined, "BAD_OPTION", () => "generate: --chat takes a text, got --ids; leave one out")
  expect(chat || system === undefined, "BAD_OPTION", () => "generate: --system is for --chat, which is not given")
  if (ids !== undefined) return typedIds("generate", ids)
  return stdin ? await readStdin("generate", signal) : word!
}

/** Ids of a conversation of one message; the template says what begins it. */
function conversation(model: Model, content: string, system: string | undefined): number[] {
  const before = system === undefined ? [] : [{ role: "system", content: system }]
  return model.encode(model.renderChat([...before, { role: "user", content }]))
}

const lengthOf = (model: Model, prompt: Prompt, { chat }: Flags): number =>
  chat ? prompt.length : model.tokens(prompt, true).length

/** Text as it comes. The prompt is shown with the first piece: nothing is written for a call that is refused. */
async function writeText(session: Session, prompt: Prompt, shown: string, flags: Flags, signal: AbortSignal) {
  let text = ""
  const options = { ...optionsOf(flags), ...(flags.stop && { stop: flags.stop }), signal }
  try {
    for await (const piece of session.generate(prompt, options)) {
      if (!flags.json) process.stdout.write(text === "" ? shown + piece : piece)
      text += piece
    }
  } finally {
    if (!flags.json && text !== "") process.stdout.write("\n")
  }
  return { text }
}

/** Token by token: a line for each with --logprobs, else ids between spaces. */
async function writeTokens(model: Model, session: Session, prompt: Prompt, flags: Flags, signal: AbortSignal) {
  const ids: number[] = []
  const logprobs: number[] = []
  const ends = model.codec?.endTokens ?? []
  try {
    for await (const { id, logprob } of session.tokens(prompt, { ...optionsOf(flags), signal })) {
      ids.push(id)
      logprobs.push(logprob)
      if (!flags.json) process.stdout.write(flags.logprobs ? `${tokenLine(model, id, logprob)}\n` : separated(ids))
      if (ends.includes(id)) break
    }
  } finally {
    if (!flags.json && !flags.logprobs && ids.length > 0) process.stdout.write("\n")
  }
  const text = model.codec && model.decode(ids)
  return { ...(text !== undefined && { text }), ids, ...(flags.logprobs && { logprobs }) }
}

const separated = (ids: readonly number[]): string => `${ids.length > 1 ? " " : ""}${ids.at(-1)}`

/** A token for people: id, log-probability in nats, and its text where the model has one. */
export function tokenLine(model: Model, id: number, logprob: number | null): string {
  const nats = logprob === null ? "–" : logprob.toFixed(4)
  const text = model.codec ? `  ${JSON.stringify(model.decode([id], { special: true, within: true }))}` : ""
  return `${String(id).padStart(6)} ${nats.padStart(9)}${text}`
}

const samplingFlags = [
  ...(["maxTokens", "temperature", "topK", "topP", "minP", "repetitionPenalty"] as const),
  ...(["frequencyPenalty", "presencePenalty", "seed"] as const),
]

function optionsOf(flags: Flags): Omit<GenerateOptions, "stop" | "stopTokens"> {
  const given = samplingFlags.filter((name) => flags[name] !== undefined)
  return Object.fromEntries(given.map((name) => [name, flags[name]]))
}
