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
