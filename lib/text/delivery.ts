/**
 * Tokens becoming text for a reader: characters are never split, stop strings and what ends a text never shown.
 */
import type { Codec, Decoder } from "./codec.ts"
import { StopSearch } from "./stop-search.ts"

export interface DeliveryOptions {
  readonly endTokens?: readonly number[] | undefined
  readonly within?: boolean | undefined
}

/** What can be shown, and how many of the newest tokens have not been shown whole. */
export class Delivery {
  readonly #decoder: Decoder
  readonly #search: StopSearch
  readonly #ends: ReadonlySet<number>
  /** Of each token that was not shown whole: length of all text with its own; Infinity while it is held back by the decoder. */
  #waiting: number[] = []
  #decoded = 0
  #shown = 0
  #ended = false
  /** Text that was shown of the first token that was not shown whole. */
  #partial = ""
  readonly #codec: Codec

  /**
   * Ends before any of the strings, and before any of the tokens; a string that is a special token's text means that token. `within`: the
   * tokens go on from others.
   */
  constructor(
    codec: Codec,
    stops: readonly string[],
    { endTokens = codec.endTokens, within = false }: DeliveryOptions = {},
  ) {
    this.#codec = codec
    this.#decoder = codec.decoder({ within })
    this.#search = new StopSearch(stops)
    const special = stops.map((stop) => codec.special(stop)).filter((id) => id !== undefined)
    this.#ends = new Set([...endTokens, ...special])
  }

  /** Whether a stop string or a token that ends the text has come. */
  get stopped(): boolean {
    return this.#ended || this.#search.stopped !== undefined
  }

  /** Newest tokens that were not shown whole; one without text is shown with what precedes it. */
  get undelivered(): number {
    return this.#waiting.length
  }

  /** Ids of what was shown of tokens that were not shown whole, as when a stop string begins inside a token: they stand for it, where the vocabulary can write it. */
  get shownOfUndelivered(): readonly number[] {
    return this.#partial === "" ? [] : this.#codec.encode(this.#partial, { within: true })
  }

  push(token: number): string {
    if (this.#ends.has(token)) return this.#end()
    const text = this.#decoder.push(token)
    const { open } = this.#decoder
    this.#waiting.push(Number.POSITIVE_INFINITY)
    if (text === "" && open) return ""
    this.#decoded += text.length
    // Text that comes with an unfinished character is that of all tokens but the last.
    const whole = this.#waiting.length - (open ? 1 : 0)
    for (let i = whole - 1; i >= 0 && this.#waiting[i] === Number.POSITIVE_INFINITY; i--)
      this.#waiting[i] = this.#decoded
    return this.#show(this.#search.push(text))
  }

  /** The end of the text: what was held back, unfinished characters as U+FFFD. */
  flush(): string {
    this.#waiting = []
    this.#partial = ""
    return this.#search.held + this.#decoder.flush()
  }

  /** All that was held back is part of the text, what ends it is not. */
  #end(): string {
    this.#ended = true
    const rest = this.flush()
    this.#waiting = [Number.POSITIVE_INFINITY]
    return rest
  }

  #show(text: string): string {
    this.#shown += text.length
    const open = this.#waiting.findIndex((end) => end > this.#shown)
    const count = open < 0 ? this.#waiting.length : open
    const whole = this.#waiting[count - 1]
    this.#partial = whole === undefined ? this.#partial + text : text.slice(text.length - (this.#shown - whole))
    this.#waiting = this.#waiting.slice(count)
    return text
  }
}
