/**
 * Between text and tokens. A model has a codec: its bytes, a tokenizer, or one of your own.
 */
import type { ChatTemplates } from "./chat-template.ts"
import { Utf8 } from "./utf8.ts"

export interface EncodeOptions {
  /** Put in front what the tokenizer begins a text with, such as `<s>`. Default false. */
  readonly begin?: boolean | undefined
  /** The text goes on from other text: without the space that some tokenizers set before every text. Default false. */
  readonly within?: boolean | undefined
}

export interface DecodeOptions {
  /** Show special tokens, such as `<|endoftext|>`. Default false: they are marks, not text. */
  readonly special?: boolean | undefined
  /** The ids go on from others: with the space that some tokenizers leave out before a text. Default false. */
  readonly within?: boolean | undefined
}

/** Ids of a text, and the text of ids as they come. */
export interface Codec {
  /** One more than the highest id; a model may have more rows than that, which then have no text. */
  readonly size: number
  /** Tokens that end a text: generation ends before them. Bytes have none. */
  readonly endTokens: readonly number[]
  /** How a conversation becomes a prompt, where the tokenizer says so. */
  readonly chat?: ChatTemplates | undefined
  encode(text: string, options?: EncodeOptions): number[]
  /** A decoder for one text. */
  decoder(options?: DecodeOptions): Decoder
  /** The id of a special token by its text, such as `<|endoftext|>`. */
  special(text: string): number | undefined
}

/** Turns tokens into text as they come; holds back what is not yet certain, such as the first bytes of a character. */
export interface Decoder {
  /** The text that is certain since the last call. */
  push(token: number): string
  /** Whether the last token is held back, wholly or in part. */
  readonly open: boolean
  /** What was held back, unfinished characters as U+FFFD. */
  flush(): string
}

/** Every byte is its own token. Lone surrogates, which UTF-8 has no bytes for, become U+FFFD. */
export const byteCodec: Codec = {
  size: 256,
  endTokens: [],
  encode: (text) => Array.from(new TextEncoder().encode(text)),
  decoder() {
    const text = new Utf8()
    return {
      push: (token) => text.push(Uint8Array.of(token)),
      get open() {
        return text.open
      },
      flush: () => text.flush(),
    }
  },
  special: () => undefined,
}

/** The text of ids: what a decoder gives for all of them. */
export function decode(codec: Codec, ids: Iterable<number>, options?: DecodeOptions): string {
  const decoder = codec.decoder(options)
  const pieces: string[] = []
  for (const id of ids) pieces.push(decoder.push(id))
  return pieces.join("") + decoder.flush()
}
