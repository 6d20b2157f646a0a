import { writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { openSafetensors, parseSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { SelscanError } from "../../lib/errors.ts"
import { fileOf, fileOfBytes, temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()
const a = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
const b = '"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}'
const tensor = (fields: string) => `{"a":{${fields}}}`
const shape = (text: string, end = 8) => tensor(`"dtype":"F32","shape":${text},"data_offsets":[0,${end}]`)
const offsets = (text: string) => tensor(`"dtype":"F32","shape":[2],"data_offsets":${text}`)
const utf8 = (text: string) => new TextEncoder().encode(text)

/** What is wrong, the file, and what the message must say. */
const bad: [string, Uint8Array, RegExp][] = [
  ["an empty file", new Uint8Array(0), /at least 8 bytes, got 0/],
  ["seven bytes", new Uint8Array(7), /at least 8 bytes, got 7/],
  ["a header length beyond the file", fileOfBytes(utf8("{}"), 0, 3n), /header of 3 bytes, got a file of 10/],
  [
    "a header length beyond the limit",
    fileOfBytes(utf8("{}"), 0, 100_000_001n),
    /at most 100000000 bytes, got 100000001/,
  ],
  ["a header length of 2^64 − 1", fileOfBytes(utf8("{}"), 0, 2n ** 64n - 1n), /got 18446744073709551615/],
  ["an empty header", fileOf(""), /starts with `{`/],
  ["a space before the header", fileOf(" {}"), /starts with `{`/],
  ["a byte order mark", fileOf("\ufeff{}"), /starts with `{`/],
  ["an array", fileOf("[]"), /starts with `{`/],
  ["bytes that are not UTF-8", fileOfBytes(Uint8Array.of(0x7b, 0xff, 0x7d)), /UTF-8/],
  ["half a header", fileOf("{"), /a string at character 1, got the end/],
  ["text after the header", fileOf("{} x"), /the end at character 3, got "x"/],
  ["a missing colon", fileOf('{"a" {}}'), /`:`/],
  ["a trailing comma", fileOf(`{${a},}`, 8), /a string/],
  ["a string without end", fileOf('{"a'), /string that ends/],
  ["a string that ends in a backslash", fileOf('{"a\\"'), /string that ends/],
  ["a bad escape", fileOf('{"\\x":{}}'), /well-formed string/],
  ["a raw line feed in a string", fileOf('{"\n":{}}'), /well-formed string/],
  ["a number for a tensor", fileOf('{"a":1}'), /`{`/],
  ["null for a tensor", fileOf('{"a":null}'), /`{`/],
  ["two tensors of one name", fileOf(`{${a},${a}}`, 8), /one tensor named "a", got two/],
  ["the same name spelt with an escape", fileOf(`{${a},${a.replace('"a"', '"\\u0061"')}}`, 8), /one tensor named "a"/],
  ["a field twice", fileOf(tensor('"dtype":"F32","dtype":"F32"')), /"a": expected one field dtype, got two/],
  ["an unknown field", fileOf(tensor('"strides":[1]')), /a field "strides"/],
  ["a field of Object.prototype", fileOf(tensor('"toString":[1]')), /a field "toString"/],
  ["no dtype", fileOf(tensor('"shape":[2],"data_offsets":[0,8]'), 8), /not all of them/],
  ["no shape", fileOf(tensor('"dtype":"F32","data_offsets":[0,8]'), 8), /not all of them/],
  ["no offsets", fileOf(tensor('"dtype":"F32","shape":[2]'), 8), /not all of them/],
  ["an unknown dtype", fileOf(tensor('"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]'), 8), /got "F8_E4M3"/],
  [
    "a dtype of Object.prototype",
    fileOf(tensor('"dtype":"constructor","shape":[],"data_offsets":[0,0]')),
    /got "constructor"/,
  ],
  ["a dtype that is a number", fileOf(tensor('"dtype":4')), /a string/],
  ["a negative dimension", fileOf(shape("[-2]"), 8), /whole number from 0 .* got "-2\]/],
  ["minus zero", fileOf(shape("[-0]", 0)), /whole number/],
  ["a fractional dimension", fileOf(shape("[2.5]"), 8), /whole number/],
  ["a dimension with an exponent", fileOf(shape("[2e0]"), 8), /whole number/],
  ["a dimension of 2^53", fileOf(shape("[9007199254740992]"), 8), /whole number/],
  ["a dimension of a thousand digits", fileOf(shape(`[${"9".repeat(1000)}]`), 8), /whole number/],
  ["a leading zero", fileOf(shape("[02]"), 8), /`\]`/],
  ["a dimension that is a string", fileOf(shape('["2"]'), 8), /a number/],
  ["a shape that is no list", fileOf(shape("2"), 8), /`\[`/],
  ["a shape whose product overflows", fileOf(shape("[4294967296,4294967296]"), 8), /2\^53 − 1 bytes/],
  ["an overflow times zero", fileOf(shape("[4294967296,4294967296,0]", 0)), /2\^53 − 1 bytes/],
  ["a product that wraps to the right size in 64 bits", fileOf(shape("[4611686018427387906,1]"), 8), /whole number/],
  ["a hundred dimensions", fileOf(shape(`[${"1,".repeat(99)}2]`), 8), /at most 64 numbers/],
  ["one offset", fileOf(offsets("[8]"), 8), /two data_offsets, got 1/],
  ["three offsets", fileOf(offsets("[0,8,8]"), 8), /at most 2 numbers/],
  ["offsets in the wrong order", fileOf(offsets("[8,0]"), 8), /ascending order, got \[8, 0\]/],
  ["a negative offset", fileOf(offsets("[-8,0]"), 8), /whole number/],
  ["a size that is not the shape's", fileOf(offsets("[0,4]"), 4), /8 bytes for F32 \[2\], got 4/],
  [
    "a gap at the start",
    fileOf(`{${a.replace("[0,8]", "[4,12]")}}`, 12),
    /"a": expected data from byte 0 on, got a gap/,
  ],
  ["a gap between tensors", fileOf(`{${a},${b.replace("[8,12]", "[9,13]")}}`, 13), /"b": .* got a gap/],
  ["an overlap", fileOf(`{${a},${b.replace("[8,12]", "[7,11]")}}`, 11), /"b": .* got an overlap/],
  ["one range twice", fileOf(`{${a},${a.replace('"a"', '"c"')}}`, 8), /got an overlap/],
  ["bytes after the last tensor", fileOf(`{${a}}`, 9), /8 bytes of tensors, got 1 more/],
  ["bytes where there are no tensors", fileOf("{}", 1), /0 bytes of tensors, got 1 more/],
  ["data that are cut", fileOf(`{${a},${b}}`, 11), /"b": expected data up to byte 12, got only 11/],
  ["metadata that are no object", fileOf('{"__metadata__":[]}'), /`{`/],
  ["metadata that are no text", fileOf('{"__metadata__":{"a":1}}'), /a string/],
  ["metadata twice", fileOf('{"__metadata__":{},"__metadata__":{}}'), /one __metadata__, got two/],
  ["a metadata key twice", fileOf('{"__metadata__":{"a":"","a":""}}'), /one metadata entry "a", got two/],
]

for (const [what, bytes, says] of bad) {
  test(`${what} is refused in one sentence, in a file as in memory`, async (t) => {
    const path = join(folder, `${what.replaceAll(/[^a-z0-9]/g, "-")}.safetensors`)
    writeFileSync(path, bytes)
    const fromMemory = t.throws(() => parseSafetensors(bytes, path), { instanceOf: SelscanError, code: "BAD_FILE" })
    const fromFile = await t.throwsAsync(openSafetensors(path), { instanceOf: SelscanError, code: "BAD_FILE" })
    t.is(fromFile.message, fromMemory.message)
    t.true(fromFile.message.startsWith(`${path}: `))
    t.regex(fromFile.message, says)
    t.regex(fromFile.message, /expected .*, got .*; /)
  })
}

test("unusual but valid headers are read", (t) => {
  const spaced = fileOf(` {${a} }\n\t `.trimStart(), 8)
  t.deepEqual([...parseSafetensors(spaced, "m").tensors.keys()], ["a"])
  const swapped = fileOf(`{${b},${a}}`, 12)
  t.deepEqual([...parseSafetensors(swapped, "m").tensors.keys()], ["b", "a"])
  t.is(parseSafetensors(fileOf("{}"), "m").tensors.size, 0)
  t.deepEqual({ ...parseSafetensors(fileOf('{"__metadata__":{}}'), "m").metadata }, {})
  const escaped = fileOf('{"\\u00e9\\\\":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')
  t.deepEqual([...parseSafetensors(escaped, "m").tensors.keys()], ["é\\"])
})

test("a hostile header is refused before it can fill the memory", (t) => {
  const size = 30_000_000
  const before = process.memoryUsage().rss
  const headers = [
    `{"a":${"[".repeat(size)}`,
    `{"a":{"shape":[${"0,".repeat(size / 2)}`,
    `{${" ".repeat(size)}`,
    `{"${'\\"'.repeat(size / 2)}`,
  ]
  for (const header of headers) {
    const error = t.throws(() => parseSafetensors(fileOf(header), "m"), { instanceOf: SelscanError, code: "BAD_FILE" })
    t.true(error.message.length < 1000)
  }
  t.true(process.memoryUsage().rss - before < 20 * size)
})
