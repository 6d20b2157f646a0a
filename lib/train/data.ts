/**
 * The order of training data: a function of (seed, step) alone, so that a resumed run reads what the interrupted one would
 * have read.
 */
import { open } from "node:fs/promises"
import { expect, SelscanError } from "../errors.ts"
import { Random } from "../layers/random.ts"

/** One sequence of a batch: `length` inputs and the byte after each. */
export interface Sequence {
  readonly ids: Int32Array
  readonly targets: Int32Array
  /** What its stream read last before it, where the options ask for that. */
  readonly before: Int32Array
  /** Whether the stream's state starts from zero here. */
  readonly fresh: boolean
  /** Bytes that its stream has read since it last started from a zero state. */
  readonly position: number
}

export interface StreamOptions {
  readonly streams: number
  readonly length: number
  readonly seed: number
  readonly reset: number
  /** Positions that a sequence can have. Default: what an index can count. */
  readonly contextMax?: number
  /** Bytes before each sequence to name beside it. Default 0. */
  readonly before?: number
}

/**
 * `streams` readers that start evenly spaced over the text and run through it, wrapping at its end. A stream's next
 * sequence continues where its last one stopped, with its state; with probability `reset` it forgets the state, so that the
 * model also learns to begin, and so it does where it would pass `contextMax`.
 */
export class Streams {
  readonly text: Uint8Array
  readonly streams: number
  readonly length: number
  readonly #seed: number
  readonly #reset: number
  readonly #contextMax: number
  readonly #before: number
  readonly #shift: number
  /** Of each stream the step last asked for, and the position there. */
  readonly #latest: { step: number; position: number }[]

  constructor(text: Uint8Array, options: StreamOptions) {
    const { streams, length, seed, reset, contextMax = 2 ** 31 - 1, before = 0 } = options
    expect(
      text.length > length,
      "BAD_INPUT",
      () =>
        `train: the text is longer than one sequence of ${length} bytes, got ${text.length}; give more text or a smaller --length`,
    )
    this.text = text
    this.streams = streams
    this.length = length
    this.#seed = seed
    this.#reset = reset
    this.#contextMax = contextMax
    this.#before = before
    this.#latest = Array.from({ length: streams }, () => ({ step: -1, position: 0 }))
    expect(
      length <= contextMax,
      "BAD_OPTION",
      () => `train: length is at most the model's contextMax, ${contextMax}, got ${length}`,
    )
    this.#shift = new Random(seed, 0x51f7).below(text.length)
  }

  /** What stream `stream` reads at step `step` (from 0). */
  sequence(stream: number, step: number): Sequence {
    const { text, length } = this
    const size = text.length
    const start = this.#start(stream, step)
    const read = (from: number, count: number) =>
      Int32Array.from({ length: count }, (_, i) => text[(from + i + size) % size]!)
    const [ids, targets, before] = [
      read(start, length),
      read(start + 1, length),
      read(start - this.#before, this.#before),
    ]
    const position = this.#position(stream, step)
    return { ids, targets, before, fresh: position === 0, position }
  }

  #start(stream: number, step: number): number {
    const size = this.text.length
    return (this.#shift + Math.floor((size * stream) / this.streams) + step * this.length) % size
  }

  /** Whether chance, the text's beginning or the first step make a stream forget its state. */
  #forgets(stream: number, step: number): boolean {
    const wrapped = this.#start(stream, step) < this.length
    return step === 0 || wrapped || new Random(this.#seed, stream, step).uniform() < this.#reset
  }

  /** Counted from the last step known, or from where the stream last forgot its state. */
  #position(stream: number, step: number): number {
    const latest = this.#latest[stream]!
    const known = latest.step <= step ? latest.step : -1
    let from = step
    while (from > known && !this.#forgets(stream, from)) from--
    let position = from === known ? latest.position : 0
    for (let at = from + 1; at <= step; at++) {
      position += this.length
      if (position + this.length > this.#contextMax) position = 0
    }
    this.#latest[stream] = { step, position }
    return position
  }
}

export interface Split {
  readonly train: Uint8Array
  /** Pieces kept out of training, each judged from a fresh state. */
  readonly validation: readonly Uint8Array[]
}

/** Keeps `fraction` of the text out of training, in `pieces` evenly spaced pieces: a tail alone would be one kind of text. */
export function splitValidation(text: Uint8Array, fraction: number, pieces = 16): Split {
  const size = Math.floor((text.length * fraction) / pieces)
  if (size < 1) return { train: text, validation: [] }
  const kept: Uint8Array[] = []
  const validation: Uint8Array[] = []
  let at = 0
  for (let piece = 0; piece < pieces; piece++) {
    const begin = Math.floor(((piece + 0.5) * text.length) / pieces - size / 2)
    kept.push(text.subarray(at, begin))
    validation.push(text.slice(begin, begin + size))
    at = begin + size
  }
  kept.push(text.subarray(at))
  return { train: concat(kept), validation }
}

/** The bytes of all files, one after another. */
export async function readTexts(files: readonly string[]): Promise<Uint8Array> {
  expect(files.length > 0, "BAD_OPTION", () => "train: at least one text file is needed, got none; name it with --file")
  return concat(await Promise.all(files.map(readWhole)))
}

/** A file's bytes; its absence or being a folder is one clear error. */
export async function readWhole(path: string): Promise<Uint8Array> {
  try {
    await using handle = await open(path, "r")
    return await handle.readFile()
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const why =
      code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "it is a folder" : (cause as Error).message
    throw new SelscanError("NOT_FOUND", `${path}: a readable file is expected, but ${why}`, { path }, { cause })
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}
