import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test, { type ExecutionContext } from "ava"
import fc from "fast-check"
import { openSafetensors, parseSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { SelscanError } from "../../lib/errors.ts"
import { fileOf, fileOfBytes, temporaryFolder } from "./helpers.ts"

/** `SELSCAN_FUZZ=1000000` for a long run with another seed each time. */
const long = Number(process.env.SELSCAN_FUZZ ?? 0)
const runs = (numRuns: number, seed: number) => (long > 0 ? { numRuns: long } : { numRuns, seed })

const folder = temporaryFolder()

/** Whatever is accepted can be read completely, and nothing but a SelscanError refuses the rest. */
function survives(t: ExecutionContext, bytes: Uint8Array): "read" | "refused" {
  try {
    const file = parseSafetensors(bytes, "fuzz")
    let sizeBytes = 0
    for (const [name, info] of file.tensors) {
      sizeBytes += file.read(name).length
      if (file.readF32(name).length !== info.shape.reduce((product, dim) => product * dim, 1))
        t.fail(`wrong length of ${name}`)
    }
    if (sizeBytes > bytes.length) t.fail("more bytes than the file has")
    return "read"
  } catch (error) {
    if (!(error instanceof SelscanError)) throw error
    if (error.code !== "BAD_FILE" || /\n/.test(error.message)) t.fail(error.message)
    return "refused"
  }
}

async function validFile(): Promise<Uint8Array> {
  const path = join(folder, "valid.safetensors")
  const entry = (name: string, dtype: "F32" | "BF16" | "BOOL" | "I64", shape: number[], size: number) => {
    return { name, dtype, shape, data: new Uint8Array(size) }
  }
  const entries = [
    entry("a", "F32", [2, 3], 24),
    entry("b", "BF16", [], 2),
    entry("c", "BOOL", [0], 0),
    entry("d", "I64", [2], 16),
  ]
  await writeSafetensors(path, entries, { metadata: { format: "pt" } })
  return new Uint8Array(readFileSync(path)) // not a Buffer, whose slices share memory
}

test("random bytes never get past the reader as anything but a SelscanError", (t) => {
  const bytes = fc.uint8Array({ maxLength: 200 })
  fc.assert(
    fc.property(bytes, (file) => void survives(t, file)),
    runs(5000, 3),
  )
  fc.assert(
    fc.property(bytes, (header) => void survives(t, fileOfBytes(header, 16))),
    runs(5000, 4),
  )
  t.pass()
})

test("a valid file cut at any offset is refused", async (t) => {
  const valid = await validFile()
  t.is(survives(t, valid), "read")
  for (let length = 0; length < valid.length; length++) t.is(survives(t, valid.subarray(0, length)), "refused")
  const longer = new Uint8Array(valid.length + 1)
  longer.set(valid)
  t.is(survives(t, longer), "refused")
})

test("a valid file with bytes changed is read or refused", async (t) => {
  const valid = await validFile()
  const change = fc.tuple(fc.nat({ max: valid.length - 1 }), fc.nat({ max: 255 }))
  const outcomes = new Set<string>()
  const property = fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
    const file = valid.slice()
    for (const [at, byte] of changes) file[at] = byte
    outcomes.add(survives(t, file))
  })
  fc.assert(property, runs(20_000, 5))
  t.deepEqual([...outcomes].sort(), ["read", "refused"])
})

test("a header put together from pieces of the grammar is read or refused", (t) => {
  const pieces = [
    '"a"',
    '"b"',
    '"dtype"',
    '"F32"',
    '"U8"',
    '"shape"',
    '"data_offsets"',
    '"__metadata__"',
    "{",
    "}",
    "[",
    "]",
  ]
  const piece = fc.constantFrom(
    ...pieces,
    ":",
    ",",
    "0",
    "4",
    "8",
    "-1",
    "1e9",
    "9007199254740991",
    " ",
    "null",
    "\\",
    '"',
  )
  const header = fc.array(piece, { maxLength: 40 }).map((parts) => `{${parts.join("")}`)
  fc.assert(
    fc.property(header, (text) => void survives(t, fileOf(text, 8))),
    runs(20_000, 6),
  )
  t.pass()
})

test("a header whose values lie is read or refused", (t) => {
  const number = fc.oneof(
    fc.nat({ max: 24 }),
    fc.integer(),
    fc.double(),
    fc.constantFrom(2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63),
  )
  const value = fc.oneof(
    { weight: 3, arbitrary: fc.array(number, { maxLength: 3 }) },
    { weight: 1, arbitrary: fc.jsonValue() },
  )
  const dtype = fc.oneof(fc.constantFrom("F32", "U8", "BF16", "I64", "F8"), fc.jsonValue())
  const tensor = fc.record(
    { dtype, shape: value, data_offsets: value },
    { requiredKeys: ["dtype", "shape", "data_offsets"] },
  )
  const header = fc.dictionary(fc.string(), tensor, { maxKeys: 3 })
  fc.assert(
    fc.property(header, (object) => void survives(t, fileOf(object, 24))),
    runs(10_000, 7),
  )
  t.pass()
})

test("opening a damaged file is read or refused as the same bytes in memory are", async (t) => {
  const valid = await validFile()
  const path = join(folder, "damaged.safetensors")
  const change = fc.tuple(
    fc.nat({ max: valid.length - 1 }),
    fc.nat({ max: 255 }),
    fc.integer({ min: 0, max: valid.length }),
  )
  const property = fc.asyncProperty(change, async ([at, byte, length]) => {
    const file = valid.slice(0, length)
    if (at < length) file[at] = byte
    writeFileSync(path, file)
    let message = ""
    await openSafetensors(path).then(
      (opened) => opened.close(),
      (error) => {
        message = error instanceof SelscanError ? error.message : `not a SelscanError: ${error}`
      },
    )
    let expected = ""
    try {
      parseSafetensors(file, path)
    } catch (error) {
      expected = (error as Error).message
    }
    t.is(message, expected)
  })
  await fc.assert(property, { ...runs(300, 8), numRuns: Math.min(long || 300, 5000) })
})
