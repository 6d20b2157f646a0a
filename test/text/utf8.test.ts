import test from "ava"
import fc from "fast-check"
import { Utf8 } from "../../lib/text/utf8.ts"

/** Bytes near which UTF-8 has its rules. */
const byte = fc.oneof(
  fc.constantFrom(0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef),
  fc.constantFrom(0xf0, 0xf1, 0xf4, 0xf5, 0xff),
  fc.integer({ min: 0, max: 255 }),
)
const pieces = fc.array(fc.array(byte, { maxLength: 5 }), { maxLength: 12 })

test("any bytes in any pieces give the text of all of them, as early as it is certain", (t) => {
  const whole = (bytes: number[]) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes))
  fc.assert(
    fc.property(pieces, (pieces) => {
      const utf8 = new Utf8()
      const seen: number[] = []
      let text = ""
      for (const piece of pieces) {
        text += utf8.push(Uint8Array.from(piece))
        seen.push(...piece)
        // What streams hold back is exactly what is not certain.
        t.is(text, new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(seen), { stream: true }))
        t.is(utf8.open, whole(seen) !== text)
      }
      t.is(text + utf8.flush(), whole(pieces.flat()))
      t.false(utf8.open)
    }),
    { numRuns: 2000, seed: 1 },
  )
})
