/**
 * Byte-level tokens: every byte of UTF-8 stands as one visible character, so that any text is a sequence of tokens. Printable
 * bytes of Latin-1 stand for themselves, the others for U+0100 and on: a space is Ġ, a line feed Ċ.
 * @see Radford et al. 2019 (GPT-2), section 2.2, whose vocabularies have this form
 */
import type { Decoder } from "./codec.ts"
import { Utf8 } from "./utf8.ts"

/**
 * How GPT-2 divides a text into words. As in the Rust library white space is Unicode's, of which JavaScript's `\s` lacks U+0085,
 * and which it widens by U+FEFF.
 */
export const wordPattern =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu

const byteOf = new Map<string, number>()
for (let byte = 0, other = 0x100; byte < 256; byte++) {
  const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
  byteOf.set(String.fromCharCode(visible ? byte : other++), byte)
}

/** Bytes of a token. One that has other characters in it stands for itself, as in the Rust library. */
export function bytesOfToken(token: string): Uint8Array {
  const bytes = Uint8Array.from(token, (character) => byteOf.get(character) ?? 0)
  return [...token].every((character) => byteOf.has(character)) ? bytes : new TextEncoder().encode(token)
}

/** A decoder of tokens that are bytes; `bytesOf` gives none for ids without text. */
export function byteLevelDecoder(bytesOf: (id: number) => Uint8Array | undefined): Decoder {
  const text = new Utf8()
  return {
    push(id) {
      const bytes = bytesOf(id)
      return bytes === undefined ? "" : text.push(bytes)
    },
    get open() {
      return text.open
    },
    flush: () => text.flush(),
  }
}
