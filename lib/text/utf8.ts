/**
 * UTF-8 that arrives in pieces. Text comes out as soon as it is certain; only the first bytes of a character that can still be finished,
 * three at most, wait for more.
 */

const decoder = new TextDecoder("utf-8", { ignoreBOM: true })
const none = new Uint8Array(0)

export class Utf8 {
  #waiting: Uint8Array = none

  /** Whether bytes of an unfinished character wait. */
  get open(): boolean {
    return this.#waiting.length > 0
  }

  /** The text that is certain now; bytes that are no character, or broken off by others, become U+FFFD. */
  push(bytes: Uint8Array): string {
    const all = this.#waiting.length === 0 ? bytes : joined(this.#waiting, bytes)
    const end = all.length - unfinished(all)
    this.#waiting = end === all.length ? none : all.slice(end)
    return end === 0 ? "" : decoder.decode(all.subarray(0, end))
  }

  /** What waited, as U+FFFD. */
  flush(): string {
    const rest = decoder.decode(this.#waiting)
    this.#waiting = none
    return rest
  }
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const all = new Uint8Array(a.length + b.length)
  all.set(a)
  all.set(b, a.length)
  return all
}

/** How many bytes at the end begin a character that more bytes can finish. */
function unfinished(bytes: Uint8Array): number {
  for (let count = 1; count <= Math.min(3, bytes.length); count++) {
    const at = bytes.length - count
    const byte = bytes[at]!
    if (byte >= 0x80 && byte < 0xc0) continue // inside a character, if it is one
    return count < lengthOf(byte) && (count === 1 || mayFollow(byte, bytes[at + 1]!)) ? count : 0
  }
  return 0
}

/** Bytes of a character by its first; 1 for those that begin none. */
const lengthOf = (byte: number): number => (byte < 0xc2 || byte > 0xf4 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4)

/** Whether a second byte is none that makes the character overlong, a surrogate, or larger than U+10FFFF. */
function mayFollow(first: number, second: number): boolean {
  if (first === 0xe0) return second >= 0xa0
  if (first === 0xed) return second < 0xa0
  if (first === 0xf0) return second >= 0x90
  return first !== 0xf4 || second < 0x90
}
