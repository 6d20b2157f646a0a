/**
 * What a model is given, checked: its codec, and ids or bytes where text would do.
 */
import { expect, SelscanError } from "../errors.ts"
import { byteCodec, type Codec } from "../text/codec.ts"

/**
 * The codec that was given, if a model of that vocabulary can take its ids, else that of bytes where it suits. A model may have more ids
 * than its tokenizer: vocabularies are padded.
 */
export function codecFor(vocab: number, codec: Codec | undefined): Codec | undefined {
  if (codec === undefined) return vocab === 256 ? byteCodec : undefined
  expect(
    codec.size <= vocab,
    "BAD_TOKENIZER",
    () =>
      `model: a tokenizer of at most ${vocab} ids is expected, as the model's vocabulary has, got one of ${codec.size}; load with the model's own tokenizer`,
    { expected: vocab, got: codec.size },
  )
  return codec
}

/** Ids as an array. Throws BAD_INPUT for what are none of the vocabulary. */
export function checkedIds(where: string, given: Uint8Array | readonly number[], vocab: number): number[] {
  expect(
    Array.isArray(given) || given instanceof Uint8Array,
    "BAD_INPUT",
    () =>
      `${where}: ${where === "prompt" ? "a string, " : ""}a Uint8Array or an array of ids is expected, got ${given === null ? "null" : typeof given}`,
  )
  const ids = Array.from(given)
  const bad = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocab)
  expect(
    bad < 0,
    "BAD_INPUT",
    () => `${where}: ids are whole numbers from 0 to ${vocab - 1}, got ${ids[bad]} at index ${bad}`,
  )
  return ids
}

/** The text of bytes for a tokenizer. Throws BAD_INPUT for what is no UTF-8. */
export function textOfBytes(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    const message =
      "prompt: bytes are expected to be text in UTF-8, as the model has a tokenizer, got other bytes; give a string or ids"
    throw new SelscanError("BAD_INPUT", message, {}, { cause })
  }
}
