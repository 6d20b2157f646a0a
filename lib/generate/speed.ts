/**
 * How fast a model reads and writes, beside what the memory allows: what `selscan bench` prints.
 */
import { checkOptions, expect } from "../errors.ts"
import { type Program, trace } from "../graph/program.ts"
import { dtypeSizeBytes } from "../graph/value.ts"
import { headOf } from "../models/language-model.ts"
import type { Piece } from "../models/patches.ts"
import { type Executable, Store } from "../native.ts"
import { linear } from "../ops/linear.ts"
import { sum } from "../ops/reduce.ts"
import { sample } from "../ops/sample.ts"
import type { Kept } from "./kept.ts"
import { layoutInputs, layoutOf, numericsOf } from "./layout.ts"
import type { Model } from "./model.ts"
import type { Holder, Place } from "./places.ts"
import { rowCounts, rowsFor } from "./programs.ts"
import { sampling, samplingInputs } from "./sampling.ts"
import type { Session } from "./session.ts"

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

export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
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
  const reading = await readingProgram(store, blockBytes, signal)
  using sequences = await sequencesOf(model, sizes)
  const times: Record<"read" | "write" | "pass", number[]> = { read: [], write: [], pass: [] }
  for (let round = 0; round <= repeats; round++) {
    const read = await seconds(() => sequences.read(signal))
    const write = await seconds(() => sequences.write(signal))
    const pass = await seconds(() => reading.run({}, { signal }))
    onProgress?.(round + 1, repeats + 1)
    if (round === 0) continue // programs are compiled, weights prepared, pages touched
    times.read.push((batch * prefill) / read)
    times.write.push((batch * decode) / write)
    times.pass.push(blockBytes / pass)
  }
  const bytes = await bytesOf(model, sizes)
  const readBandwidth = spread(times.pass).median
  const written = spread(times.write)
  const share = (bytes.perToken * written.median) / readBandwidth
  return { prefill: spread(times.read), decode: written, bytes, readBandwidth, share }
}

export type SpeedSizes = Required<Pick<SpeedOptions, "prefill" | "decode" | "batch" | "repeats">>

const optionNames = ["prefill", "decode", "batch", "repeats", "blockBytes", "signal", "onProgress"]

function settled(model: Model, options: SpeedOptions) {
  checkOptions("speed", options, optionNames)
  const { prefill = 512, decode = 64, batch = 1, repeats = 5, blockBytes = 2 ** 29, signal, onProgress } = options
  const sizes = { prefill, decode, batch, repeats }
  for (const [name, value] of Object.entries({ ...sizes, blockBytes })) {
    const whole = Number.isSafeInteger(value) && value >= 1
    expect(whole, "BAD_OPTION", () => `speed: ${name} is a whole number of at least 1, got ${value}`)
  }
  const { patches, contextMax = Number.POSITIVE_INFINITY } = model.network
  expect(
    patches === undefined || batch === 1,
    "BAD_OPTION",
    () => `speed: batch is 1 for a model that reads patches, got ${batch}`,
  )
  expect(
    blockBytes % 4 === 0 && blockBytes <= 2 ** 32,
    "BAD_OPTION",
    () => `speed: blockBytes is a multiple of 4 up to 2³², got ${blockBytes}`,
  )
  expect(
    prefill + decode < contextMax,
    "BAD_INPUT",
    () => `speed: fewer than contextMax = ${contextMax} tokens are expected, got ${prefill} and ${decode} more`,
  )
  return { ...sizes, blockBytes, signal, onProgress }
}

/** What is measured: `read` begins anew with a prompt, `write` goes on from there and gives the ids that each sequence wrote. */
interface Measured {
  read(signal: AbortSignal | undefined): Promise<void>
  write(signal: AbortSignal | undefined): Promise<number[][]>
  [Symbol.dispose](): void
}

/** One sequence as a session runs it, or several side by side. Throws SLOTS_EXHAUSTED where the model has no places for them. */
export const sequencesOf = async (model: Model, sizes: SpeedSizes): Promise<Measured> =>
  sizes.batch === 1 ? new OneSequence(model, sizes) : await Sequences.open(model, sizes)

/** The prompt of a sequence, and the token to begin writing with: any ids do, and each sequence has its own. */
export const promptIds = (sequence: number, { prefill }: Pick<SpeedSizes, "prefill">, vocab: number): number[] =>
  Array.from({ length: prefill + 1 }, (_, i) => (i * 7919 + sequence * 31 + 101) % vocab)

/** One sequence, as a session runs it. */
class OneSequence implements Measured {
  readonly #model: Model
  readonly #sizes: SpeedSizes
  #session: Session

  constructor(model: Model, sizes: SpeedSizes) {
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

/** A sequence among several: where it lies. It is in use from first to last, so it never makes way. */
interface Seated extends Holder {
  readonly place: Place
}

/** Several sequences: their prompts one after another, then a row of each in every run. */
class Sequences implements Measured {
  readonly #model: Model
  readonly #sizes: SpeedSizes
  readonly #seated: readonly Seated[]
  #position = 0
  /** Runs of each sequence so far: states go from one of its first two slots to the other. */
  #turn = 0
  #next: Promise<Executable> | undefined

  private constructor(model: Model, sizes: SpeedSizes, seated: readonly Seated[]) {
    this.#model = model
    this.#sizes = sizes
    this.#seated = seated
  }

  static async open(model: Model, sizes: SpeedSizes): Promise<Sequences> {
    const seated: Seated[] = []
    try {
      for (let i = 0; i < sizes.batch; i++) {
        const holder: Holder = { spill: () => Promise.resolve() }
        const place = await model.places.enter(holder)
        seated.push(Object.assign(holder, { place }))
      }
      return new Sequences(model, sizes, seated)
    } catch (error) {
      for (const one of seated) model.places.release(one)
      throw error
    }
  }

  async read(signal: AbortSignal | undefined): Promise<void> {
    const { batch, prefill } = this.#sizes
    const most = rowCounts.at(-1)!
    for (let sequence = 0; sequence < batch; sequence++) {
      const ids = promptIds(sequence, this.#sizes, this.#model.network.vocab)
      for (this.#position = 0, this.#turn = 0; this.#position < prefill; this.#turn++) {
        const piece = ids.slice(this.#position, Math.min(prefill, this.#position + most))
        const executable = await this.#model.step("prompt", rowsFor(piece.length))
        await this.#run(executable, [this.#piece(sequence, 0, piece)], { picks: Int32Array.of(-1) }, signal)
        this.#position += piece.length
      }
    }
  }

  async write(signal: AbortSignal | undefined): Promise<number[][]> {
    const { batch, decode } = this.#sizes
    const { vocab } = this.#model.network
    this.#next ??= this.#model.store.compile(nextProgram(this.#model, batch))
    const executable = await this.#next
    const written: number[][] = Array.from({ length: batch }, () => [])
    let ids = Int32Array.from({ length: batch }, (_, i) => promptIds(i, this.#sizes, vocab).at(-1)!)
    for (let count = 0; count < decode; count++, this.#turn++, this.#position++) {
      const pieces = Array.from(ids, (id, sequence) => this.#piece(sequence, sequence, [id]))
      ids = (await this.#run(executable, pieces, {}, signal)).ids as Int32Array<ArrayBuffer>
      for (const [sequence, id] of ids.entries()) written[sequence]!.push(id)
    }
    return written
  }

  #piece(sequence: number, begin: number, ids: readonly number[]): Piece {
    const { slots, ring } = this.#seated[sequence]!.place
    const slot = (turn: number) => slots[turn % 2]!
    const [from, to] = [this.#position === 0 ? 0 : slot(this.#turn), slot(this.#turn + 1)]
    const position = this.#position
    return { begin, end: begin + ids.length, position, from, to, ring, ids, before: [] }
  }

  #run(
    executable: Executable,
    pieces: readonly Piece[],
    picks: Record<string, Int32Array>,
    signal: AbortSignal | undefined,
  ) {
    const { settings, limits, position } = samplingInputs(greedy, this.#position, 0, 0)
    const inputs = {
      settings: Float32Array.from(pieces.flatMap(() => [...settings])),
      limits: Int32Array.from(pieces.flatMap(() => [...limits])),
      position: Int32Array.from(pieces.flatMap(() => [...position])),
    }
    const layout = layoutInputs(executable.program, this.#model.network, pieces)
    return executable.run({ ...layout, ...picks, ...inputs }, { signal })
  }

  [Symbol.dispose](): void {
    for (const one of this.#seated) this.#model.places.release(one)
  }
}

const greedy = sampling({ temperature: 0, seed: 0 })

/** One row of each of `batch` sequences, and what follows each. Inputs and outputs as of stepProgram. */
function nextProgram(model: Model, batch: number): Program {
  return trace(
    `next of ${batch}`,
    (t) => {
      const layout = layoutOf(t, model.network, model.shape, batch)
      const x = model.network.forward(t.input("ids", "i32", [batch]), layout)
      const logits = linear({ x, ...headOf(model.network, layout) }, { precision: t.precision, dtype: "f32" }).y
      return sample({
        logits,
        settings: t.input("settings", "f32", [batch, 6]),
        limits: t.input("limits", "i32", [batch, 5]),
        position: t.input("position", "i32", [batch]),
      })
    },
    numericsOf(model.shape),
  )
}

/**
 * Reads a block of memory once: sums are faster than memory on every device. The block is no weight, since what depends on weights alone is
 * computed once and kept.
 */
async function readingProgram(store: Store, sizeBytes: number, signal: AbortSignal | undefined): Promise<Executable> {
  const block = { name: "block", dtype: "f32", shape: [sizeBytes / 4] } as const
  const program = trace("read", (t) => ({ y: sum({ x: t.training(block.name, block.dtype, block.shape) }).y }))
  const executable = await store.compile(program)
  const piece = new Float32Array(Math.min(2 ** 20, sizeBytes / 4)).fill(1) // written: pages that were never touched are all one
  for (let at = 0; at < sizeBytes; at += piece.byteLength) {
    if (signal?.aborted) break // the first run says so
    await store.upload("training", block, piece.subarray(0, (sizeBytes - at) / 4), at)
  }
  return executable
}

/** Bytes at the middle of what is decoded. */
async function bytesOf(model: Model, { prefill, decode, batch }: SpeedSizes): Promise<Speed["bytes"]> {
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

function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, min: sorted[0]!, max: sorted.at(-1)! }
}
