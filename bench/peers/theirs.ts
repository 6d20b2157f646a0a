/**
 * llama.cpp through node-llama-cpp, asked by run.ts, set up as it is fastest: no copies of states beside, no logits but where a token is
 * chosen, greedily and in its own code, and several sequences in one batch of one context.
 */
import { type LlamaModel, type LlamaSequence, openLlama, theirLogits } from "../../scripts/llama.ts"
import { before, type Party, promptOf, type Settings, serve, type Task } from "./party.ts"

/**
 * Tokens that it takes at once: what makes it fastest. 32, 64, 128, 256 and 512, its own default, gave 280, 289, 254, 229 and 188 tokens/s
 * (medians of three prompts of 512 in turns, Mamba-130M, f16, two Zen 5 cores, 2026-11-22); on a quieter machine 64 and 512 were alike.
 */
const batchSize = 64

class Theirs implements Party {
  readonly #settings: Settings
  readonly #one: LlamaSequence
  readonly #several: readonly LlamaSequence[]

  private constructor(settings: Settings, one: LlamaSequence, several: readonly LlamaSequence[]) {
    this.#settings = settings
    this.#one = one
    this.#several = several
  }

  static async open(settings: Settings): Promise<Theirs> {
    const { modules, model: modelPath, threads, tokensMost, batchMost } = settings
    const llama = await openLlama(modules, threads)
    const model = await llama.loadModel({ modelPath, gpuLayers: 0 })
    const [one] = await sequencesOf(model, { count: 1, tokens: tokensMost, threads })
    return new Theirs(settings, one!, await sequencesOf(model, { count: batchMost, tokens: 512, threads }))
  }

  async about(): Promise<string> {
    const { threads } = this.#settings
    return `llama.cpp (node-llama-cpp ${this.#settings.version}), batches of ${batchSize} tokens, ${threads} threads`
  }

  /** Nothing is made by length. */
  warm(task: Task): Promise<number> {
    return this.seconds({ ...task, tokens: Math.min(task.tokens, 8) })
  }

  async seconds(task: Task): Promise<number> {
    const { vocab } = this.#settings
    if (task.kind === "prefill") {
      await this.#one.clearHistory()
      const ids = promptOf(0, task.tokens, vocab)
      const began = performance.now()
      await this.#one.evaluateWithoutGeneratingNewTokens(ids)
      return (performance.now() - began) / 1000
    }
    const chosen = task.batch === 1 ? [this.#one] : this.#several.slice(0, task.batch)
    const begin = async (sequence: LlamaSequence, i: number) => {
      await sequence.clearHistory()
      await sequence.evaluateWithoutGeneratingNewTokens(promptOf(i, before, vocab))
    }
    for (const [i, sequence] of chosen.entries()) await begin(sequence, i)
    const began = performance.now()
    await Promise.all(chosen.map((sequence) => write(sequence, task.tokens)))
    return (performance.now() - began) / 1000
  }

  async logits(ids: readonly number[]): Promise<number[]> {
    await this.#one.clearHistory()
    return [...(await theirLogits(this.#one, ids))]
  }
}

async function sequencesOf(
  model: LlamaModel,
  { count, tokens, threads }: { count: number; tokens: number; threads: number },
): Promise<LlamaSequence[]> {
  // A context holds what was generated, too.
  const context = await model.createContext({ sequences: count, contextSize: tokens + 512, threads, batchSize })
  return Array.from({ length: count }, () => context.getSequence({ checkpoints: { max: 0, interval: false } }))
}

async function write(sequence: LlamaSequence, tokens: number): Promise<void> {
  let written = 0
  for await (const _ of sequence.evaluate([1], { temperature: 0 })) if (++written === tokens) return
  throw new Error(`${tokens} tokens are expected, got ${written}: the model ended its text`)
}

await serve((settings) => Theirs.open(settings))
