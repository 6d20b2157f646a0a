/**
 * How fast a model reads and writes, beside what the memory allows: what `selscan bench` prints.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Program } from "../graph/program.ts"
import { dtypeSizeBytes } from "../graph/value.ts"
import { Store } from "../native.ts"
import type { Kept } from "./kept.ts"
import { checkBlock, defaultBlockBytes, readingProbe, type Spread, spread } from "./limits.ts"
import type { Model } from "./model.ts"
import type { Session } from "./session.ts"
import { OwnPrograms, type Programs, promptIds, Sequences, type Sizes } from "./side-by-side.ts"

export interface SpeedOptions {
  /** Tokens of the prompt of each sequence. Default 512. */
  readonly prefill?: number
  /** Tokens that each sequence writes. Default 64. */
  readonly decode?: number
  /** Sequences that write side by side. Default 1. */
  readonly batch?: number
  /** Times that all of it is measured, after once that is not. Default 5. */
  readonly repeats?: number
  /** Bytes of the block that is read to measure the memory. Default 512 MB, which no last-level cache of common processors holds. */
  readonly blockBytes?: number
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: (done: number, all: number) => void
}

export interface Speed {
  /** Tokens per second, of all sequences together. */
  readonly prefill: Spread
  readonly decode: Spread
  /** Bytes of all weights, of the state of one sequence with what attention sees of its ring, and of both what one decoded token reads. */
  readonly bytes: { readonly weights: number; readonly state: number; readonly perToken: number }
  /** Bytes per second that were read from memory in the same run, on the same threads. */
  readonly readBandwidth: number
  /** Bytes that decoding reads per second, over that: weights once for all sequences, states of each. More than 1 where a cache holds them. */
  readonly share: number
}

/**
 * Measures a prompt and decoding, in turns, and between them the read bandwidth. Tokens are chosen greedily; their ids mean nothing.
 * The model needs places for as many sessions as `batch`; of sessions that are open, those that nobody uses make way.
 * @throws BAD_OPTION; SLOTS_EXHAUSTED; BAD_INPUT where the tokens pass contextMax; OUT_OF_MEMORY; ABORTED
 * @example
 * const { decode, share } = await speed(await load("demo"), { prefill: 512, decode: 64 })
 */
export async function speed(model: Model, options: SpeedOptions = {}): Promise<Speed> {
  const { signal, onProgress, blockBytes, ...sizes } = settled(model, options)
  const { prefill, decode, batch, repeats } = sizes
  await using store = new Store(model.device)
  const reading = await readingProbe(store, blockBytes, signal)
  await using programs = new OwnPrograms(model)
  using sequences = await sequencesOf(model, sizes, programs)
  const times: Record<"read" | "write" | "pass", number[]> = { read: [], write: [], pass: [] }
  for (let round = 0; round <= repeats; round++) {
    const read = await seconds(() => sequences.read(signal))
    const write = await seconds(() => sequences.write(signal))
    const pass = await reading.run(signal)
    onProgress?.(round + 1, repeats + 1)
    if (round === 0) continue // programs are compiled, weights prepared, pages touched
    times.read.push((batch * prefill) / read)
    times.write.push((batch * decode) / write)
    times.pass.push(pass)
  }
  const bytes = await bytesOf(model, sizes)
  const readBandwidth = spread(times.pass).median
  const written = spread(times.write)
  const share = (bytes.perToken * written.median) / readBandwidth
  return { prefill: spread(times.read), decode: written, bytes, readBandwidth, share }
}

export type SpeedSizes = Sizes & Required<Pick<SpeedOptions, "repeats">>

const optionNames = ["prefill", "decode", "batch", "repeats", "blockBytes", "signal", "onProgress"]

function settled(model: Model, options: SpeedOptions) {
  checkOptions("speed", options, optionNames)
  const {
    prefill = 512,
    decode = 64,
    batch = 1,
    repeats = 5,
    blockBytes = defaultBlockBytes,
    signal,
    onProgress,
  } = options
  const sizes = { prefill, decode, batch, repeats }
  checkSizes("speed", model, { ...sizes, blockBytes })
  return { ...sizes, blockBytes, signal, onProgress }
}

/** Throws unless a model can be measured with these: BAD_OPTION, and BAD_INPUT where tokens pass contextMax. */
export function checkSizes(
  where: string,
  model: Model,
  sizes: SpeedSizes & Required<Pick<SpeedOptions, "blockBytes">>,
): void {
  for (const [name, value] of Object.entries(sizes)) {
    const whole = Number.isSafeInteger(value) && value >= 1
    expect(whole, "BAD_OPTION", () => `${where}: ${name} is a whole number of at least 1, got ${value}`)
  }
  const { prefill, decode, batch, blockBytes } = sizes
  const { patches, contextMax = Number.POSITIVE_INFINITY } = model.network
  expect(
    patches === undefined || batch === 1,
    "BAD_OPTION",
    () => `${where}: batch is 1 for a model that reads patches, got ${batch}`,
  )
  checkBlock(where, blockBytes)
  expect(
    prefill + decode < contextMax,
    "BAD_INPUT",
    () => `${where}: fewer than contextMax = ${contextMax} tokens are expected, got ${prefill} and ${decode} more`,
  )
}

/** What is measured: `read` begins anew with a prompt, `write` goes on from there and gives the ids that each sequence wrote. */
interface Measured {
  read(signal: AbortSignal | undefined): Promise<void>
  write(signal: AbortSignal | undefined): Promise<number[][]>
  [Symbol.dispose](): void
}

/**
 * One sequence as a session runs it, or several side by side with these programs, which the caller disposes of. Throws SLOTS_EXHAUSTED
 * where the model has no places for them.
 */
export const sequencesOf = async (model: Model, sizes: Sizes, programs: Programs): Promise<Measured> =>
  sizes.batch === 1 ? new OneSequence(model, sizes) : await Sequences.open(model, sizes, programs)

/** One sequence, as a session runs it. */
class OneSequence implements Measured {
  readonly #model: Model
  readonly #sizes: Sizes
  #session: Session

  constructor(model: Model, sizes: Sizes) {
    this.#model = model
    this.#sizes = sizes
    this.#session = model.session()
  }

  async read(signal: AbortSignal | undefined): Promise<void> {
    this.#session.dispose()
    this.#session = this.#model.session()
    // A session keeps the last token for the run that needs its logits.
    await this.#session.append(promptIds(0, this.#sizes, this.#model.network.vocab), { signal })
  }

  async write(signal: AbortSignal | undefined): Promise<number[][]> {
    const ids: number[] = []
    const options = { maxTokens: this.#sizes.decode, temperature: 0, seed: 0, signal }
    for await (const { id } of this.#session.tokens(undefined, options)) ids.push(id)
    return [ids]
  }

  [Symbol.dispose](): void {
    this.#session.dispose()
  }
}

/** Bytes at the middle of what is decoded. */
export async function bytesOf(model: Model, { prefill, decode, batch }: Sizes): Promise<Speed["bytes"]> {
  const position = Math.ceil(prefill + decode / 2)
  const each = model.network.patches?.size ?? 1 // a run that begins a patch reads more than those inside it
  const programs = await Promise.all(
    Array.from({ length: each }, async (_, i) => (await model.step("next", 1, position + i)).program),
  )
  const weights = new Map(programs.flatMap((one) => one.stored("weight")).map((slot) => [slot.name, slot.sizeBytes]))
  const read = mean(programs.map(weightsRead))
  const state = stateBytes(model.kept, position)
  return { weights: total(weights.values()), state, perToken: Math.round(read / batch + state) }
}

/** Bytes of the weights that a program reads whole: of an embedding one row is read, which is nothing beside them. */
function weightsRead(program: Program): number {
  const whole = program.nodes.filter(({ op }) => op.name !== "embedding").flatMap(({ inputs }) => Object.values(inputs))
  const names = new Set(whole.map(({ name }) => name))
  return total(program.stored("weight").map(({ name, sizeBytes }) => (names.has(name) ? sizeBytes : 0)))
}

/** Bytes that are kept of a sequence of so many tokens: its states, and of its rings what the next one sees. */
export const stateBytes = (kept: Kept, tokens: number): number =>
  total(kept.expected(tokens).map(({ elements, dtype }) => elements * dtypeSizeBytes[dtype]))

const total = (values: Iterable<number>): number => [...values].reduce((sum, value) => sum + value, 0)
const mean = (values: readonly number[]): number => total(values) / values.length

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await work()
  return (performance.now() - began) / 1000
}
