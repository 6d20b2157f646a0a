/**
 * Holds GGUF files to llama.cpp: the same weights there and here, f32 on both sides, give the same greedy tokens, for 64 of them or until
 * the two best logits come within 10⁻³ of each other, where rounding decides; and all their logits are close. Three models of random
 * weights, and the demo; the demo of SAMBA must be refused.
 */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { convert } from "../lib/checkpoint/convert.ts"
import { modelConfigFields } from "../lib/checkpoint/families.ts"
import { writeSafetensors } from "../lib/checkpoint/safetensors.ts"
import { SelscanError } from "../lib/errors.ts"
import { load } from "../lib/generate/load.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { Random } from "../lib/layers/random.ts"
import { type ModelSize, modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { installLlama, type Llama, NotInstalled, openLlama, ourLogits, theirLogits } from "./llama.ts"

const usage = `Compares greedy tokens of GGUF files in llama.cpp with ours.

  npx tsx scripts/check-llama.ts [--tokens 64] [--modules FOLDER] [--json]

  --tokens N        tokens to generate (64)
  --modules FOLDER  a node_modules folder that has node-llama-cpp already; nothing is installed then
  --json            one object per model
  --help            this text

Exit code: 0 all agree, 1 some do not, 2 node-llama-cpp could not be installed.`

/** Two logits this close may be ordered either way by rounding. */
const tie = 1e-3
/** Of a logit. Measured (2026-11-22): rounding makes it 2.8e-5, an A that is 1 % too large 7.3e-3 and more. */
const differenceMost = 2e-4

/** Each differs from the others in everything that a file says: 256 ids are bytes, others have no tokenizer. */
const random: Readonly<Record<string, ModelSize>> = {
  "random: tied, bytes": { dim: 32, layers: 2, vocab: 256, state: 8 },
  "random: odd rank, 3 taps": {
    dim: 48,
    layers: 3,
    vocab: 61,
    state: 5,
    conv: 3,
    rank: 7,
    tied: false,
    convBias: false,
  },
  "random: wide vocabulary": {
    dim: 80,
    layers: 4,
    vocab: 1000,
    state: 16,
    conv: 2,
    rank: 5,
    tied: false,
    normEps: 1e-6,
  },
}

interface Agreement {
  readonly model: string
  /** Tokens that are the same, from the first on. */
  readonly agreed: number
  readonly of: number
  /** Different ones among them: a model that repeats itself shows little. */
  readonly different: number
  /** Whether the first other token stands where two logits tie. */
  readonly tied: boolean
  /** The smallest distance between the two best logits at the tokens that agreed. */
  readonly closest: number
  /** The largest difference of a logit at those. */
  readonly difference: number
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      tokens: { type: "string", default: "64" },
      modules: { type: "string" },
      json: { type: "boolean" },
      help: { type: "boolean" },
    },
  })
  if (values.help) {
    console.log(usage)
    return 0
  }
  const tokens = Number(values.tokens)
  if (!(Number.isInteger(tokens) && tokens >= 1)) throw new Error(`--tokens is a whole number, got ${values.tokens}`)
  const folder = await mkdtemp(join(tmpdir(), "selscan-llama-"))
  try {
    const llama = await openLlama(values.modules ?? (await installLlama(folder)), 1)
    const results = await compareAll(llama, folder, tokens).finally(() => llama.dispose())
    for (const result of results)
      console.log(values.json ? JSON.stringify({ ...result, verdict: verdict(result) }) : row(result))
    const refused = await refuses(folder)
    if (!values.json)
      console.log(refused ? "demo-samba: refused, as it must be" : "demo-samba: converted, and must not be")
    return refused && results.every((result) => verdict(result) !== "DIFFER") ? 0 : 1
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

function verdict({ agreed, of, tied, difference }: Agreement): string {
  if (difference > differenceMost) return "DIFFER"
  return agreed === of ? "agree" : tied ? "agree until a tie" : "DIFFER"
}

function row(result: Agreement): string {
  const { model, agreed, of, different, closest, difference } = result
  const tokens = `${agreed} of ${of} tokens (${different} different) ${verdict(result)}`
  const numbers = `two best at least ${closest.toExponential(1)} apart, logits off by ${difference.toExponential(1)}`
  return `${model.padEnd(26)} ${tokens.padEnd(40)} ${numbers}`
}

async function compareAll(llama: Llama, folder: string, tokens: number): Promise<Agreement[]> {
  const results: Agreement[] = []
  for (const [i, [name, size]] of Object.entries(random).entries()) {
    const model = join(folder, `random-${i}`)
    await writeRandom(model, size, i + 1)
    const draw = new Random(i + 1, 0)
    const prompt = Array.from({ length: 24 }, () => draw.below(size.vocab))
    results.push(await compareOne(llama, { name, model, prompt, file: `${model}.gguf`, tokens }))
  }
  const demo = fileURLToPath(new URL("../models/demo", import.meta.url))
  const prompt = [...Buffer.from("In the beginning ")]
  results.push(await compareOne(llama, { name: "demo", model: demo, prompt, file: join(folder, "demo.gguf"), tokens }))
  return results
}

/** Our own initial weights, with wider branches, B and C: the next token depends on what came before, and none is certain. */
async function writeRandom(folder: string, size: ModelSize, seed: number): Promise<void> {
  const config = modelConfig(size)
  const network = new PatternModel(config)
  const weights = initialWeights(network, seed)
  await mkdir(folder)
  const entries = [...allParameters(network)].map(([name, { shape }]) => {
    const spread = name.endsWith("out_proj.weight") || name.endsWith("x_proj.weight") ? 20 : 1
    const values = weights.get(name)!.map((value) => spread * value)
    return { name, shape, dtype: "F32" as const, data: new Uint8Array(values.buffer) }
  })
  await writeSafetensors(join(folder, "model.safetensors"), entries)
  await writeFile(join(folder, "config.json"), JSON.stringify(modelConfigFields(config, "selscan")))
}

interface Comparison {
  readonly name: string
  readonly model: string
  readonly prompt: readonly number[]
  readonly file: string
  readonly tokens: number
}

async function compareOne(llama: Llama, { name, model, prompt, file, tokens }: Comparison): Promise<Agreement> {
  await convert(model, file, { to: "gguf", dtype: "f32" })
  const theirs = await theirTokens(llama, file, prompt, tokens)
  await using ours = await load(model, { precision: "f32", device: "cpu" })
  const ids: number[] = []
  using session = ours.session()
  for await (const { id } of session.tokens(prompt, { maxTokens: tokens, temperature: 0 })) ids.push(id)
  const other = ids.findIndex((id, i) => id !== theirs[i]!.id)
  const agreed = other < 0 ? tokens : other
  const logits = await ourLogits(ours, [...prompt, ...ids.slice(0, -1)])
  const { vocab } = ours.network
  const at = (i: number) => logits.subarray((prompt.length - 1 + i) * vocab, (prompt.length + i) * vocab)
  const same = Array.from({ length: agreed }, (_, i) => i)
  return {
    model: name,
    agreed,
    of: tokens,
    different: new Set(ids.slice(0, agreed)).size,
    tied: other >= 0 && Math.min(distance(at(other)), distance(theirs[other]!.logits)) < tie,
    closest: Math.min(...same.map((i) => Math.min(distance(at(i)), distance(theirs[i]!.logits)))),
    difference: Math.max(
      ...same.map((i) => at(i).reduce((most, v, id) => Math.max(most, Math.abs(v - theirs[i]!.logits[id]!)), 0)),
    ),
  }
}

/** Between the two best. */
function distance(logits: Float32Array): number {
  const [best, second] = logits.toSorted((a, b) => b - a)
  return best! - second!
}

interface TheirToken {
  readonly id: number
  readonly logits: Float32Array
}

async function theirTokens(
  llama: Llama,
  file: string,
  prompt: readonly number[],
  tokens: number,
): Promise<TheirToken[]> {
  const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 })
  const context = await model.createContext({ contextSize: prompt.length + tokens, sequences: 1, threads: 1 })
  const sequence = context.getSequence()
  const found: TheirToken[] = []
  let added = prompt
  while (found.length < tokens) {
    const logits = await theirLogits(sequence, added)
    const id = logits.indexOf(Math.max(...logits))
    found.push({ id, logits })
    added = [id]
  }
  await context.dispose()
  await model.dispose()
  return found
}

/** SAMBA has no words there. */
async function refuses(folder: string): Promise<boolean> {
  const samba = fileURLToPath(new URL("../models/demo-samba", import.meta.url))
  try {
    await convert(samba, join(folder, "samba.gguf"))
    return false
  } catch (error) {
    if (error instanceof SelscanError && error.code === "BAD_CHECKPOINT") return true
    throw error
  }
}

process.exitCode = await main().catch((error: Error) => {
  console.error(`check-llama: ${error instanceof NotInstalled ? error.message : error.stack}`)
  return error instanceof NotInstalled ? 2 : 1
})
