import { readFileSync } from "node:fs"
import type { CAC } from "cac"
import { expect } from "../errors.ts"
import { load } from "../generate/load.ts"
import type { GenerateOptions } from "../generate/session.ts"
import { type Device, setThreads } from "../native.ts"
import { interruptible } from "./interrupt.ts"

interface Flags {
  model: string
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  frequencyPenalty?: number
  presencePenalty?: number
  seed?: number
  stop?: unknown
  precision?: "f32" | "bf16"
  device?: Device
  threads?: number
  stdin?: boolean
  json?: boolean
  /** Words after "--": prompts that begin with a dash. */
  "--"?: string[]
}

/** `selscan generate [prompt]`: writes text as it is generated. */
export function generateCommand(cli: CAC): void {
  cli
    .command("generate [prompt]", "Generate text after a prompt")
    .option("--stdin", "Read the prompt from standard input")
    .option("--model <name>", "demo, or a folder with a config and weights", { default: "demo" })
    .option("--max-tokens <n>", "Bytes to generate at most", { default: 400 })
    .option("--temperature <t>", "Divides the logits; 0 is greedy", { default: 0.8 })
    .option("--top-k <k>", "Keep the k most probable bytes (0: all)")
    .option("--top-p <p>", "Keep the smallest set with this probability (1: all)")
    .option("--min-p <p>", "Keep bytes at least this probable relative to the best (0: all)")
    .option("--repetition-penalty <r>", "Divides the logits of bytes seen before (1: none)")
    .option("--frequency-penalty <f>", "Subtracted for each time a byte was generated")
    .option("--presence-penalty <q>", "Subtracted once for bytes generated before")
    .option("--seed <n>", "The same seed gives the same text")
    .option("--stop <text>", "End before this text; may be given several times")
    .option("--precision <p>", "f32 or bf16; as stored when not given")
    .option("--device <d>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads (0: all usable cores)")
    .option("--json", "Print one object: prompt, text, tokens, seconds")
    .example('selscan generate "In the beginning" --max-tokens 200')
    .action((prompt: string | undefined, flags: Flags) => interruptible((signal) => generate(prompt, flags, signal)))
}

async function generate(word: string | undefined, flags: Flags, signal: AbortSignal): Promise<number> {
  const given = word ?? flags["--"]?.[0]
  expect(
    (given === undefined) === (flags.stdin === true),
    "BAD_OPTION",
    () =>
      "generate: one prompt is expected; write it after the command, or give --stdin to read it from standard input",
  )
  const prompt = flags.stdin ? readFileSync(0, "utf8") : given!
  if (flags.threads !== undefined) await setThreads(flags.threads)
  const { precision, device } = flags
  await using model = await load(String(flags.model), { precision, device })
  const began = performance.now()
  let text = ""
  // The prompt is shown with the first piece: nothing is written for a call that is refused.
  const show = (piece: string) => flags.json || process.stdout.write(text === "" ? prompt + piece : piece)
  try {
    for await (const piece of model.generate(prompt, { ...optionsOf(flags), signal })) {
      show(piece)
      text += piece
    }
  } finally {
    if (!flags.json && text !== "") process.stdout.write("\n")
  }
  const seconds = (performance.now() - began) / 1000
  if (flags.json) console.log(JSON.stringify({ prompt, text, tokens: Buffer.byteLength(text), seconds }))
  return 0
}

function optionsOf(flags: Flags): GenerateOptions {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, seed, stop } =
    flags
  const stops = stop === undefined ? undefined : [stop].flat().map(String)
  const options = {
    maxTokens,
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    frequencyPenalty,
    presencePenalty,
    seed,
    stop: stops,
  }
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as GenerateOptions
}
