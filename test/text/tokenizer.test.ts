import { Tokenizer } from "@huggingface/tokenizers"
import test from "ava"
import fc from "fast-check"
import { byteCodec, type Codec, decode } from "../../lib/text/codec.ts"
import { tokenizerCodec } from "../../lib/text/tokenizer.ts"
import {
  gptNeox,
  gptNeoxIds,
  tinyByteLevel,
  tinyLlama,
  tinySuffixed,
  tinyUnigram,
  tinyWordPiece,
} from "./tokenizers.ts"

const neox = tokenizerCodec(gptNeox(), { config: { eos_token: "<|endoftext|>" } })
const small = { tinyByteLevel, tinyLlama, tinyWordPiece, tinyUnigram, tinySuffixed }
const text = fc.string({
  unit: fc.oneof(
    fc.string({ unit: "binary", minLength: 1, maxLength: 1 }),
    fc.constantFrom(..." '\n\u0085\ufeff\u0301漢🙂"),
  ),
})

/** Pushes ids one by one; a check after each sees the text so far. */
function streamed(codec: Codec, ids: readonly number[], special: boolean, check?: (text: string, i: number) => void) {
  const decoder = codec.decoder({ special })
  let text = ""
  ids.forEach((id, i) => {
    text += decoder.push(id)
    check?.(text, i)
  })
  return text + decoder.flush()
}

test("GPT-NeoX texts have the ids that the Rust library gives them", (t) => {
  for (const [text, ids] of gptNeoxIds()) t.deepEqual(neox.encode(text), ids, JSON.stringify(text))
})

test("GPT-NeoX: the text of a text's ids is the text in NFC, special tokens shown", (t) => {
  fc.assert(
    fc.property(text, (text) => {
      t.is(decode(neox, neox.encode(text), { special: true }), text.toString().normalize("NFC"))
    }),
    { numRuns: 2000, seed: 1 },
  )
  for (const [text, ids] of gptNeoxIds()) t.is(decode(neox, ids, { special: true }), text.normalize("NFC"))
})

test("lone surrogates are written as U+FFFD by every codec", (t) => {
  for (const codec of [neox, byteCodec]) t.is(decode(codec, codec.encode("a\ud800b\udc00")), "a\ufffdb\ufffd")
})

test("byte-level text comes as early as it is certain, and never in halves of a character", (t) => {
  const ids = fc.array(fc.oneof(fc.integer({ min: 0, max: 50_276 }), fc.integer({ min: 96, max: 256 })), {
    maxLength: 20,
  })
  const bytes = (id: number) => {
    const table = byteTable()
    const token = vocabulary()[id]
    return id > 50_253 ? Buffer.from(token!) : Uint8Array.from(token!, (character) => table.get(character)!)
  }
  fc.assert(
    fc.property(ids, (ids) => {
      const seen: number[] = []
      const whole = streamed(neox, ids, true, (text, i) => {
        seen.push(...bytes(ids[i]!))
        t.is(text, new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(seen), { stream: true }))
      })
      t.is(whole, new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(seen)))
    }),
    { numRuns: 500, seed: 1 },
  )
})

const once = <T>(make: () => T) => {
  let made: T | undefined
  return () => (made ??= make())
}
const vocabulary = once(() => {
  const { model, added_tokens: added } = gptNeox()
  const tokens: string[] = []
  for (const [token, id] of Object.entries(model.vocab)) tokens[id as number] = token
  for (const { id, content } of added) tokens[id] = content
  return tokens
})
const byteTable = once(() => {
  const { vocab } = tinyByteLevel().model
  return new Map(Object.entries(vocab).filter(([, id]) => id < 256))
})

for (const [name, make] of Object.entries(small)) {
  test(`${name}: text that streams is the text of all ids, at every cut`, (t) => {
    const json = make()
    const codec = tokenizerCodec(json)
    const library = new Tokenizer(json, {}) as { decode(ids: number[], options: object): string }
    const ids = fc.array(fc.oneof(fc.integer({ min: 0, max: codec.size - 1 }), fc.integer({ min: 200, max: 260 })), {
      minLength: 1,
      maxLength: 50,
    })
    fc.assert(
      fc.property(ids, (given) => {
        const ids = given.map((id) => Math.min(id, codec.size - 1))
        const whole = library.decode(ids, { clean_up_tokenization_spaces: false })
        t.is(
          streamed(codec, ids, true, (text) => t.true(whole.startsWith(text))),
          whole,
        )
        const shown = ids.filter((id) => !json.added_tokens.some((token) => token.id === id && token.special))
        const plain = shown.length > 0 ? library.decode(shown, { clean_up_tokenization_spaces: false }) : ""
        t.is(decode(codec, ids), plain)
      }),
      { numRuns: 400, seed: 1 },
    )
  })
}

test("characters in pieces are held back until they are whole, by every decoder", (t) => {
  for (const [make, first] of [
    [tinyByteLevel, 0],
    [tinyLlama, 3],
  ] as const) {
    const decoder = tokenizerCodec(make()).decoder()
    const pushed = [0xf0, 0x9f, 0x99, 0x82, 0x41, 0xe2, 0x82].map((byte) => [decoder.push(first + byte), decoder.open])
    t.deepEqual(pushed, [
      ...[0, 1, 2].map(() => ["", true]),
      ["🙂", false],
      ["A", false],
      ...[0, 1].map(() => ["", true]),
    ])
    t.is(decoder.flush(), "\ufffd")
  }
})

test("a text begins with what the tokenizer puts there, when asked to", (t) => {
  const llama = tokenizerCodec(tinyLlama())
  t.deepEqual(llama.encode("the", { begin: true }), [1, ...llama.encode("the")])
  t.deepEqual(llama.encode("", { begin: true }), [1])
  t.deepEqual(tokenizerCodec(tinyLlama(), { config: { add_bos_token: false } }).encode("", { begin: true }), [])
  const marked = { add_bos_token: true, bos_token: { content: "<|endoftext|>" } }
  t.deepEqual(tokenizerCodec(tinyByteLevel(), { config: marked }).encode("a", { begin: true }), [263, 97])
  t.deepEqual(neox.encode("a", { begin: true }), neox.encode("a"))
})

test("text that goes on from other text is encoded and decoded without the space that begins one", (t) => {
  for (const make of [tinyLlama, tinyUnigram]) {
    const codec = tokenizerCodec(make())
    t.is(decode(codec, [...codec.encode("he"), ...codec.encode("at a", { within: true })]), "heat a")
    t.is(decode(codec, codec.encode("the")), "the")
    t.is(decode(codec, codec.encode("the"), { within: true }), " the")
  }
  const spaced = tinyByteLevel()
  const codec = tokenizerCodec({ ...spaced, pre_tokenizer: { ...spaced.pre_tokenizer, add_prefix_space: true } })
  t.deepEqual(codec.encode("the"), [258])
  t.deepEqual(codec.encode("the", { within: true }), [257])
})

test("special tokens are found in text, shown on request, and end a text where the config says so", (t) => {
  t.deepEqual(neox.endTokens, [0])
  t.deepEqual(neox.encode("a<|endoftext|>"), [66, 0])
  t.is(decode(neox, [66, 0, 66]), "aa")
  t.is(decode(neox, [66, 0, 66], { special: true }), "a<|endoftext|>a")
  t.is(neox.special("<|endoftext|>"), 0)
  t.is(neox.special("a"), undefined)
  // A character goes on behind a token without text.
  t.is(decode(tokenizerCodec(tinyByteLevel()), [0xc3, 263, 0xa9]), "é")
})

test("ids that no token has, as in padded vocabularies, have no text", (t) => {
  for (const make of [tinyByteLevel, tinyLlama]) {
    const codec = tokenizerCodec(make())
    t.is(
      decode(codec, [...codec.encode("the"), 5000, ...codec.encode("a")]),
      decode(codec, codec.encode("thea")).replace(/ ?a$/, make === tinyLlama ? " a" : "a"),
    )
  }
})

test("long texts of every kind are encoded in seconds", (t) => {
  const began = performance.now()
  for (const kind of ["word ", "a", "\n", "🙂", "漢字", "e\u0301", "\t ", " ", "\0"]) {
    const text = kind.repeat(50_000 / kind.length)
    t.is(decode(neox, neox.encode(text)), text.normalize("NFC"))
  }
  // Marks in such numbers take ICU seconds at once, and minutes in greater ones.
  t.is(decode(neox, neox.encode("\u0301\u0327".repeat(50_000))).length, 100_000)
  t.true(performance.now() - began < 60_000) // 1 s on an idle machine
})

test("a long text without spaces is pieces of a Unigram vocabulary too", (t) => {
  const codec = tokenizerCodec(tinyUnigram())
  t.is(decode(codec, codec.encode("a".repeat(200_000))).length, 200_000)
})

test("a pattern that takes for ever is stopped", (t) => {
  const splits = { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Isolated", invert: false }
  const model = { type: "BPE", vocab: { a: 0, b: 1 }, merges: [] }
  const codec = tokenizerCodec({ pre_tokenizer: splits, model })
  t.deepEqual(codec.encode("aa"), [0, 0])
  const message = /patterns that take a text in seconds, got "one that goes on after 10006 ms"/
  t.throws(() => codec.encode(`${"a".repeat(50)}b`), { code: "BAD_TOKENIZER", message })
  t.deepEqual(codec.encode("ab"), [0, 1])
})
