import test from "ava"
import fc from "fast-check"
import { byteCodec, decode } from "../../lib/text/codec.ts"
import { Delivery } from "../../lib/text/delivery.ts"
import { StopSearch } from "../../lib/text/stop-search.ts"
import { tokenizerCodec } from "../../lib/text/tokenizer.ts"
import { gptNeox, tinyByteLevel, tinyLlama, tinyUnigram } from "./tokenizers.ts"

const numRuns = 300

test("text comes whole and characters are never split", (t) => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), (text) => {
      const delivery = new Delivery(byteCodec, [])
      let out = ""
      for (const id of byteCodec.encode(text)) {
        const piece = delivery.push(id)
        t.false(piece.includes("\ufffd") && !text.includes("\ufffd"))
        out += piece
      }
      t.is(out + delivery.flush(), text)
    }),
    { numRuns, seed: 1 },
  )
})

test("bytes that are no text become replacement characters, once the decoder is sure", (t) => {
  const delivery = new Delivery(byteCodec, [])
  const out = [0xff, 0x41, 0xe2, 0x82].map((id) => delivery.push(id)).join("")
  t.is(out, "\ufffdA")
  t.is(delivery.undelivered, 2)
  t.is(delivery.flush(), "\ufffd")
  t.is(delivery.undelivered, 0)
})

test("a stop string is found across any cuts, and nothing of it is shown", (t) => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b"), maxLength: 30 })
  const stop = fc.string({ unit: fc.constantFrom("a", "b"), minLength: 1, maxLength: 4 })
  fc.assert(
    fc.property(letters, fc.array(stop, { minLength: 1, maxLength: 3 }), (text, stops) => {
      const search = new StopSearch(stops)
      let shown = ""
      for (const letter of text) {
        if (search.stopped !== undefined) break
        shown += search.push(letter)
      }
      const first = Math.min(...stops.map((one) => text.indexOf(one)).filter((at) => at >= 0))
      if (search.stopped === undefined) t.is(shown + search.held, text)
      // Letter by letter, the stop string that ends first is found first.
      else t.true(text.startsWith(shown + search.stopped) && shown.length >= Math.min(first, shown.length))
      t.false(stops.some((one) => shown.includes(one)))
    }),
    { numRuns, seed: 1 },
  )
})

test("undelivered counts the tokens behind what was shown", (t) => {
  const delivery = new Delivery(byteCodec, ["STOP"])
  const show = (text: string) => [...byteCodec.encode(text)].map((id) => delivery.push(id)).join("")
  t.is(show("ab"), "ab")
  t.is(delivery.undelivered, 0)
  t.is(show("ST"), "")
  t.is(delivery.undelivered, 2)
  t.is(show("x"), "STx")
  t.is(delivery.undelivered, 0)
  t.is(show("é"), "é")
  t.is(show("STOP"), "")
  t.true(delivery.stopped)
  t.is(delivery.undelivered, 4)
})

test("a character that is begun is not delivered, even when it breaks off another", (t) => {
  const delivery = new Delivery(byteCodec, [])
  t.is(delivery.push(0xe2), "")
  t.is(delivery.push(0xe2), "\ufffd")
  t.is(delivery.undelivered, 1)
  t.is(delivery.push(0x82), "")
  t.is(delivery.push(0xac), "€")
  t.is(delivery.undelivered, 0)
})

// Not those of words, which cannot write half of one.
for (const make of [gptNeox, tinyByteLevel, tinyLlama, tinyUnigram]) {
  const codec = tokenizerCodec(make())

  test(`${make.name}: after every token what was delivered is the text of the tokens that count as delivered`, (t) => {
    const ids = fc.array(fc.integer({ min: 0, max: codec.size - 1 }), { minLength: 1, maxLength: 12 })
    const stop = fc.array(fc.constantFrom("e", "th", " a", "he ", "\ufffd", "zz"), { maxLength: 2 })
    fc.assert(
      fc.property(ids, stop, (ids, stops) => {
        const before = codec.encode("a")
        const delivery = new Delivery(codec, stops, { within: true })
        let shown = ""
        for (let count = 1; count <= ids.length && !delivery.stopped; count++) {
          shown += delivery.push(ids[count - 1]!)
          const held = [...ids.slice(0, count - delivery.undelivered), ...delivery.shownOfUndelivered]
          t.is(decode(codec, [...before, ...held]), decode(codec, before) + shown)
        }
      }),
      { numRuns: 300, seed: 1 },
    )
  })
}

test("a stop string inside a token leaves what was shown of it as other tokens", (t) => {
  const codec = tokenizerCodec(gptNeox())
  const delivery = new Delivery(codec, ["ective"])
  const ids = codec.encode(" a selective")
  t.is(ids.length, 2)
  t.deepEqual(
    ids.map((id) => delivery.push(id)),
    [" a", " sel"],
  )
  t.is(delivery.undelivered, 1)
  t.is(decode(codec, delivery.shownOfUndelivered), " sel")
})

test("a token that ends the text is never shown, all before it is", (t) => {
  const codec = tokenizerCodec(tinyByteLevel(), { endTokens: [265] })
  const delivery = new Delivery(codec, ["theatre"])
  t.deepEqual(
    [257, 263, 0xe2, 265].map((id) => [delivery.push(id), delivery.undelivered, delivery.stopped]),
    [
      ["", 1, false],
      ["", 2, false],
      ["", 3, false],
      ["the\ufffd", 1, true],
    ],
  )
  t.deepEqual(delivery.shownOfUndelivered, [])
  const ignoring = new Delivery(codec, [], { endTokens: [] })
  t.is(ignoring.push(265), "")
  t.false(ignoring.stopped)
  const special = new Delivery(codec, ["<|im_start|>"], { endTokens: [] })
  special.push(264)
  t.true(special.stopped)
})
