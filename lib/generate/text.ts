/**
 * From tokens to text as it arrives: characters are never split, stop strings never shown.
 */

/** Text codec of a model: bytes are their own tokens. */
export interface Codec {
  encode(text: string): number[]
  decoder(): Decoder
}

/** Turns tokens into text as they come; holds back the bytes of an unfinished character. */
export interface Decoder {
  push(token: number): string
  /** Whether the last token is held back, wholly or in part. */
  readonly open: boolean
  flush(): string
}

export const byteCodec: Codec = {
  encode: (text) => [...new TextEncoder().encode(text)],
  decoder() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true })
    let open = false
    return {
      push(token) {
        const text = decoder.decode(Uint8Array.of(token), { stream: true })
        // A lead byte never ends a character: text that comes with it stands for the broken one before.
        open = text === "" || (token >= 0xc2 && token <= 0xf4)
        return text
      },
      get open() {
        return open
      },
      flush: () => decoder.decode(),
    }
  },
}

/**
 * Looks for stop strings in a stream of text. `push` returns what can be shown for certain: text that may be the beginning
 * of a stop string is held until that is decided. `stopped` is set once one was found; what precedes it has been returned.
 */
export class StopSearch {
  readonly #stops: readonly string[]
  #held = ""
  stopped: string | undefined

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop !== "")
  }

  /** Text received and not yet shown. */
  get held(): string {
    return this.#held
  }

  push(text: string): string {
    const whole = this.#held + text
    const found = this.#stops
      .map((stop) => ({ stop, at: whole.indexOf(stop) }))
      .filter(({ at }) => at >= 0)
      .sort((a, b) => a.at - b.at || b.stop.length - a.stop.length)[0]
    if (found !== undefined) {
      this.stopped = found.stop
      this.#held = whole.slice(found.at)
      return whole.slice(0, found.at)
    }
    const keep = Math.max(0, ...this.#stops.map((stop) => overlap(whole, stop)))
    this.#held = whole.slice(whole.length - keep)
    return whole.slice(0, whole.length - keep)
  }
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length
  }
  return 0
}

/** Tokens becoming text: what can be shown, and how many of the newest tokens have not been shown whole. */
export class Delivery {
  readonly #decoder: Decoder
  readonly #search: StopSearch
  /** Per token: length of all text once it was decoded; NaN while its character is unfinished. */
  readonly #ends: number[] = []
  #decoded = 0
  #shown = 0

  constructor(codec: Codec, stops: readonly string[]) {
    this.#decoder = codec.decoder()
    this.#search = new StopSearch(stops)
  }

  get stopped(): boolean {
    return this.#search.stopped !== undefined
  }

  get undelivered(): number {
    const last = this.#ends.findLastIndex((end) => end <= this.#shown)
    return this.#ends.length - 1 - last
  }

  push(token: number): string {
    const text = this.#decoder.push(token)
    this.#ends.push(Number.NaN)
    if (text === "") return ""
    this.#decoded += text.length
    const whole = this.#ends.length - (this.#decoder.open ? 1 : 0)
    for (let i = whole - 1; i >= 0 && Number.isNaN(this.#ends[i]); i--) this.#ends[i] = this.#decoded
    return this.#show(this.#search.push(text))
  }

  /** The end of the text: what was held back, unfinished characters as U+FFFD. */
  flush(): string {
    this.#ends.fill(0)
    return this.#search.held + this.#decoder.flush()
  }

  #show(text: string): string {
    this.#shown += text.length
    return text
  }
}
