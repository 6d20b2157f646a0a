/**
 * Text as it comes from a decoder that only decodes whole lists of ids, such as those of SentencePiece vocabularies, whose first token loses its
 * space. What a token adds is the text of a window that ends with it, less what the window showed before. Bytes that are no
 * character decode to U+FFFD; one at the end may still become a character and is held back.
 *
 * A window keeps the last 8 ids when it is cut: a character has 4 bytes at most, so they hold whatever the text of the next id depends on. The cost of
 * a token does not grow with the text.
 */
import type { Decoder } from "./codec.ts"

const kept = 8

/** `decode` gives the text of a list of ids; the text is that of ids which come after `before`. */
export function windowDecoder(decode: (ids: readonly number[]) => string, before: readonly number[] = []): Decoder {
  let window = [...before]
  let text = decode(window)
  let shown = text.length
  let open = false
  const certain = () => text.length - (open ? 1 : 0)
  return {
    push(id) {
      window.push(id)
      text = decode(window)
      open = text.endsWith("\ufffd")
      const fresh = text.slice(shown, certain())
      shown = Math.max(shown, certain())
      if (window.length >= 4 * kept) {
        window = window.slice(-kept)
        text = decode(window)
        shown = certain()
      }
      return fresh
    },
    get open() {
      return open
    },
    flush() {
      const rest = text.slice(shown)
      ;[window, text, shown, open] = [[], "", 0, false]
      return rest
    },
  }
}
