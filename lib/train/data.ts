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
  /** Whether the stream's state starts from zero here. */
  readonly fresh: boolean
}

/**
 * `streams` readers that start evenly spaced over the text and run through it, wrapping at its end. A stream's next
 * sequence continues where its last one stopped, with its state; with probability `reset` it forgets the state, so that the
 * model also learns to begin.
 */
export class Streams {
  readonly text: Uint8Array
  readonly streams: number
  readonly length: number
  readonly #seed: number
  readonly #reset: number
  readonly #shift: number

  constructor(text: Uint8Array, options: { streams: number; length: number; seed: number; reset: number }) {
    const { streams, length, seed, reset } = options
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
    this.#shift = new Random(seed, 0x51f7).below(text.length)
  }

  /** What stream `stream` reads at step `step` (from 0). */
  sequence(stream: number, step: number): Sequence {
    const { text, streams, length } = this
    const size = text.length
    const start = (this.#shift + Math.floor((size * stream) / streams) + step * length) % size
    const ids = Int32Array.from({ length }, (_, i) => text[(start + i) % size]!)
    const targets = Int32Array.from({ length }, (_, i) => text[(start + i + 1) % size]!)
    const wrapped = start < length && step > 0
    const fresh = step === 0 || wrapped || new Random(this.#seed, stream, step).uniform() < this.#reset
    return { ids, targets, fresh }
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
