import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import test, { type ExecutionContext } from "ava"
import fc from "fast-check"
import { readTorch } from "../../lib/checkpoint/torch-file.ts"
import { SelscanError } from "../../lib/errors.ts"
import * as w from "./torch-writer.ts"

/** `SELSCAN_FUZZ=1000000` for a long run with another seed each time. */
const long = Number(process.env.SELSCAN_FUZZ ?? 0)
const runs = (numRuns: number, seed: number) => (long > 0 ? { numRuns: long } : { numRuns, seed })

/** A view may repeat few bytes endlessly; those of more are not read here. */
const readMost = 1 << 16

/** Whatever is accepted can be read completely, and nothing but a SelscanError refuses the rest. Bytes beyond the file are never asked for. */
async function survives(t: ExecutionContext, bytes: Uint8Array): Promise<"read" | "refused"> {
  try {
    await using file = await readTorch(w.inMemory(bytes, "fuzz"))
    for (const [name, { sizeBytes, shape }] of file.tensors) {
      if (sizeBytes > readMost) continue
      if ((await file.readF32(name)).length !== shape.reduce((all, size) => all * size, 1)) t.fail(`length of ${name}`)
    }
    return "read"
  } catch (error) {
    if (!(error instanceof SelscanError)) throw error
    if (error.code !== "BAD_FILE" || /\n/.test(error.message) || error.message.length > 1000) t.fail(error.message)
    return "refused"
  }
}

const real = ["edge_cases.bin", "edge_nested.pth"].map((name) => {
  return new Uint8Array(readFileSync(fileURLToPath(new URL(`../golden/data/checkpoints/${name}`, import.meta.url))))
})
const one = (view: w.ViewOf) => w.dict({ a: w.tensor(w.storage("0", 4), view) })
const small = w.torchFile(one({ shape: [2, 2], strides: [1, 2] }), { 0: w.counted(4) }, { alignment: 1 })

test("random bytes never get past the reader as anything but a SelscanError", async (t) => {
  const bytes = fc.uint8Array({ maxLength: 200 })
  const property = fc.asyncProperty(bytes, fc.boolean(), async (rest, headed) => {
    await survives(t, headed ? w.bytesOf("PK\x03\x04", rest) : rest)
  })
  await fc.assert(property, runs(3000, 50))
  t.pass()
})

for (const [name, valid, seed] of [
  ["a real file", real[0]!, 51],
  ["a real file of nested values", real[1]!, 52],
  ["a small file", small, 53],
] as const) {
  test(`${name} with bytes changed is read or refused`, async (t) => {
    t.is(await survives(t, valid), "read")
    const change = fc.tuple(
      fc.nat({ max: valid.length - 1 }),
      fc.oneof(fc.nat({ max: 255 }), fc.constantFrom(0, 1, 255)),
    )
    const outcomes = new Set<string>()
    const property = fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
      const file = valid.slice()
      for (const [at, byte] of changes) file[at] = byte
      outcomes.add(await survives(t, file))
    })
    await fc.assert(property, runs(4000, seed))
    t.deepEqual([...outcomes].sort(), ["read", "refused"])
  })
}

const size = fc.oneof(fc.nat({ max: 200 }), fc.constantFrom(0xffff, 0xffffffff, 2 ** 31, 2 ** 32, 2 ** 53 - 1))
/** Some of the fields, each a lie. */
const lies = fc.record(
  {
    name: fc.constantFrom("archive/data/0", "archive/data.pkl", "../x", "archive/byteorder", "é", ""),
    method: fc.constantFrom(0, 8, 12),
    flags: fc.constantFrom(0, 1, 8, 9, 0x800),
    sizeBytes: size,
    packedBytes: size,
    checksum: fc.nat(),
    header: size,
  },
  { requiredKeys: [] },
)

test("an archive whose fields lie is read or refused", async (t) => {
  const entry = fc.record({
    local: fc.option(lies, { nil: {} }),
    central: fc.option(lies, { nil: {} }),
    wide: fc.boolean(),
  })
  const end = fc.record({ count: size, size, offset: size }, { requiredKeys: [] })
  const options = fc.record({
    described: fc.boolean(),
    alignment: fc.constantFrom(1, 64),
    wideEnd: fc.boolean(),
    end: fc.option(end, { nil: {} }),
  })
  const outcomes = new Set<string>()
  const property = fc.asyncProperty(fc.tuple(entry, entry), options, async (said, how) => {
    const entries = [
      { name: "archive/data.pkl", data: w.pickle(one({ shape: [4] })) },
      { name: "archive/data/0", data: w.counted(4) },
    ]
    const told = entries.map((plain, i) => ({ ...plain, ...said[i]! }))
    outcomes.add(await survives(t, w.zip(told, how)))
  })
  await fc.assert(property, runs(4000, 54))
  t.deepEqual([...outcomes].sort(), ["read", "refused"])
})

const number = fc.oneof(fc.integer({ min: -1, max: 6 }), fc.constantFrom(2 ** 31, 2 ** 40, 2 ** 53 - 1, 2 ** 62))

test("a tensor whose numbers lie is read or refused", async (t) => {
  const view = fc.record({
    shape: fc.array(number, { maxLength: 3 }),
    strides: fc.array(number, { maxLength: 3 }),
    offset: number,
    elements: fc.oneof({ weight: 4, arbitrary: fc.constant(4) }, { weight: 1, arbitrary: number }),
    type: fc.constantFrom(
      "FloatStorage",
      "HalfStorage",
      "LongStorage",
      "BoolStorage",
      "UntypedStorage",
      "ComplexFloatStorage",
    ),
  })
  const outcomes = new Set<string>()
  const property = fc.asyncProperty(view, async ({ elements, type, ...rest }) => {
    const data = { 0: new Uint8Array(type === "FloatStorage" ? 16 : type === "LongStorage" ? 32 : 8) }
    outcomes.add(await survives(t, w.torchFile(w.dict({ a: w.tensor(w.storage("0", elements, type), rest) }), data)))
  })
  await fc.assert(property, runs(4000, 55))
  t.deepEqual([...outcomes].sort(), ["read", "refused"])
})

test("a pickle put together from pieces of the grammar is read or refused", async (t) => {
  const pieces: readonly w.Piece[] = [
    ...[
      "(",
      ")",
      "]",
      "}",
      "t",
      "l",
      "d",
      "u",
      "s",
      "e",
      "a",
      "R",
      "b",
      "Q",
      "N",
      "0",
      "1",
      "2",
      "q\0",
      "h\0",
      "h\x01",
    ].map((op) => w.bytesOf(op)),
    ...[0x85, 0x86, 0x87, 0x88, 0x8f, 0x90, 0x91, 0x93, 0x94, 0x81].map((op) => w.bytesOf(op)),
    ...[
      w.int(0),
      w.int(4),
      w.int(2 ** 60),
      w.text("a"),
      w.text("0"),
      w.text("storage"),
      w.storage("0", 4),
      w.orderedDict,
    ],
    ...[
      w.tensor(w.storage("0", 4), { shape: [4] }),
      one({ shape: [2] }),
      w.global("os", "system"),
      w.global("torch", "float32"),
    ],
    ...["_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_tensor_v3"].map((name) => w.global("torch._utils", name)),
    ...["Size", "device", "FloatStorage", "UntypedStorage"].map((name) => w.global("torch", name)),
    ...[w.global("builtins", "set"), w.global("_codecs", "encode"), w.global("torch._tensor", "_rebuild_from_type_v2")],
  ]
  const pickles = fc.array(fc.constantFrom(...pieces), { maxLength: 30 })
  const outcomes = new Set<string>()
  const property = fc.asyncProperty(pickles, fc.boolean(), async (parts, within) => {
    // Half of them as a value beside a tensor, so that what they build is what decides.
    const value = w.bytesOf(...parts)
    const contents = within
      ? w.bytesOf("}(", w.text("a"), w.tensor(w.storage("0", 4), { shape: [4] }), w.text("b"), value, "u")
      : value
    outcomes.add(await survives(t, w.torchFile(contents, { 0: w.counted(4) })))
  })
  await fc.assert(property, runs(10_000, 56))
  t.deepEqual([...outcomes].sort(), ["read", "refused"])
})
