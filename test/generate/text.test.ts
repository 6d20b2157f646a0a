import test from "ava"
import fc from "fast-check"
import { byteCodec, Delivery, StopSearch } from "../../lib/generate/text.ts"

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
