import test from "ava"
import { readZip } from "../../lib/checkpoint/zip.ts"
import * as w from "./torch-writer.ts"

const [a, b] = [w.bytesOf("aaaa"), w.bytesOf("bb")]
const entries = (first: Partial<w.Entry> = {}, second: Partial<w.Entry> = {}): w.Entry[] => [
  { name: "x/a", data: a, ...first },
  { name: "x/b", data: b, ...second },
]
const read = (bytes: Uint8Array) => readZip(w.inMemory(bytes, "m.bin"))

test("entries lie where the directory and their headers say", async (t) => {
  for (const options of [{}, { described: false }, { alignment: 1 }, { wideEnd: false }]) {
    const bytes = w.zip(entries(), options)
    const found = await read(bytes)
    t.deepEqual([...found.keys()], ["x/a", "x/b"])
    for (const { name, offset, sizeBytes } of found.values()) {
      t.is(Buffer.from(bytes.subarray(offset, offset + sizeBytes)).toString(), name === "x/a" ? "aaaa" : "bb")
    }
  }
  t.is((await read(w.zip([]))).size, 0)
})

/** What is wrong, the archive, and what the message must say. */
const refused: [string, Uint8Array, RegExp][] = [
  ["21 bytes", new Uint8Array(21), /at least 22 bytes, got 21/],
  ["no last record", w.bytesOf(w.zip(entries()), "more"), /the last record of an archive at its end/],
  ["a comment", w.zip(entries(), { end: { comment: "hi" } }), /the last record of an archive at its end/],
  ["fewer entries than stated", w.zip(entries(), { end: { count: 3 } }), /3 entries in the directory, got 2/],
  ["more entries than stated", w.zip(entries(), { end: { count: 1 } }), /a directory of \d+ bytes, got \d+/],
  ["entries without end", w.zip(entries(), { end: { count: 2 ** 40 } }), /at most 131072 entries, got 1099511627776/],
  ["a directory elsewhere", w.zip(entries(), { end: { offset: 10 } }), /a directory that ends at byte/],
  ["a directory beyond the file", w.zip(entries(), { end: { offset: 2 ** 50 } }), /a directory that ends at byte/],
  ["a directory of a gigabyte", w.zip(entries(), { end: { size: 2 ** 30 } }), /a directory of at most 67108864 bytes/],
  ["compressed data", w.zip(entries({ central: { method: 8 } })), /"x\/a": .* method 0, got compressed ones, method 8/],
  ["a bomb", w.zip(entries({ central: { method: 8, packedBytes: 4, sizeBytes: 2 ** 31 } })), /got compressed ones/],
  ["data compressed in the header alone", w.zip(entries({ local: { method: 8 } })), /a header that says stored/],
  ["encrypted data", w.zip(entries({ central: { flags: 9 } })), /got encrypted ones/],
  ["more data than are stored", w.zip(entries({ central: { sizeBytes: 2 ** 31 } })), /2147483648 stored bytes, got 4/],
  [
    "sizes that reach into the next entry",
    w.zip(entries({ central: { sizeBytes: 100, packedBytes: 100 } })),
    /its 100 bytes before byte \d+, got fewer or shared ones/,
  ],
  [
    "a size into the directory",
    w.zip(entries({}, { central: { sizeBytes: 50, packedBytes: 50 } })),
    /its 50 bytes before byte/,
  ],
  ["two entries on one place", w.zip(entries({}, { central: { header: 0 } })), /fewer or shared ones/],
  ["an entry inside another", w.zip(entries({}, { central: { header: 8 } })), /fewer or shared ones/],
  ["a header that is none", w.zip(entries({ data: new Uint8Array(80) }, { central: { header: 70 } })), /bytes/],
  ["a header beyond the file", w.zip(entries({}, { central: { header: 2 ** 31 } })), /fewer or shared ones/],
  [
    "another size in the header",
    w.zip(entries({ local: { sizeBytes: 5, packedBytes: 5 } })),
    /a header that says 4 bytes/,
  ],
  [
    "no size in the header",
    w.zip(entries({ local: { sizeBytes: 0 } }), { described: false }),
    /a header that says 4 bytes/,
  ],
  ["another checksum in the header", w.zip(entries({ local: { checksum: 7 } })), /the directory's checksum/],
  ["another name in the header", w.zip(entries({ local: { name: "x/c" } })), /that name in its header, got another/],
  ["a longer name in the header", w.zip(entries({ local: { name: "x/aa" } })), /that name in its header/],
  ["one name twice", w.zip(entries({}, { name: "x/a" })), /one entry "x\/a", got two/],
  [
    "a name of 60,000 characters",
    w.zip(entries({ name: `${"a".repeat(60_000)}/..` })),
    /plain names of entries, got "a+…"/,
  ],
  ["all bits set and no wide size", w.zip(entries({ central: { sizeBytes: 0xffffffff } })), /wide sizes, got none/],
]

for (const [what, bytes, says] of refused) {
  test(`${what} is refused in one sentence`, async (t) => {
    const error = await t.throwsAsync(read(bytes), { name: "SelscanError", code: "BAD_FILE", message: says })
    t.regex(error!.message, /^m\.bin[^\n]*: expected [^\n]*, got [^\n]*; [^\n]*$/)
    t.true(error!.message.length < 500)
  })
}

for (const name of ["/x", "../x", "x/../y", "x/./y", "x//y", "x/", "", "x\\y", "C:x", "c:/x", "x\0y", "x\ny"]) {
  test(`the name ${JSON.stringify(name)} of an entry is refused`, async (t) => {
    await t.throwsAsync(read(w.zip(entries({ name }))), { code: "BAD_FILE", message: /plain names of entries/ })
  })
}

test("names are UTF-8", async (t) => {
  t.true((await read(w.zip(entries({ name: "é/数" })))).has("é/数"))
  const broken = w.zip(entries())
  broken[broken.lastIndexOf(0x61)] = 0xff // the last a is of the directory's first name
  await t.throwsAsync(read(broken), { code: "BAD_FILE", message: /names in UTF-8/ })
})
