import { readFileSync, writeFileSync } from "node:fs"
import { truncate } from "node:fs/promises"
import { join } from "node:path"
import test from "ava"
import fc from "fast-check"
import { dtypeSize, fromF32, type TensorDtype } from "../../lib/checkpoint/dtypes.ts"
import {
  openSafetensors,
  parseSafetensors,
  type TensorEntry,
  writeSafetensors,
} from "../../lib/checkpoint/safetensors.ts"
import { fileOf, temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()
const dtypes = Object.keys(dtypeSize) as TensorDtype[]

function entry(name: string, dtype: TensorDtype, shape: number[], seed = 1): TensorEntry {
  const size = shape.reduce((product, dim) => product * dim, dtypeSize[dtype])
  return { name, dtype, shape, data: Uint8Array.from({ length: size }, (_, i) => (i * 37 + seed * 11) & 255) }
}

test("every dtype comes back from a file with its shape and its bytes", async (t) => {
  const path = join(folder, "dtypes.safetensors")
  const entries = dtypes.map((dtype, i) => entry(`tensor ${dtype}`, dtype, [3, i + 1], i))
  await writeSafetensors(path, entries, { metadata: { format: "pt", note: "ünïcödé\n" } })
  await using file = await openSafetensors(path)
  t.deepEqual(
    [...file.tensors.keys()],
    entries.map(({ name }) => name),
  )
  t.deepEqual({ ...file.metadata }, { format: "pt", note: "ünïcödé\n" })
  for (const { name, dtype, shape, data } of entries) {
    const info = file.tensors.get(name)!
    t.deepEqual([info.dtype, info.shape, info.sizeBytes], [dtype, shape, (data as Uint8Array).length])
    const bytes = await file.read(name)
    t.deepEqual(bytes, data)
    t.is(bytes.byteOffset, 0)
  }
})

test("scalars, empty tensors and names of any kind come back, in the order given", async (t) => {
  const path = join(folder, "odd.safetensors")
  const entries = [
    entry("scalar", "F32", []),
    entry("empty", "F16", [0]),
    entry("2", "U8", [2, 0, 5]),
    entry("1", "U8", [3]),
    entry("__proto__", "I16", [1]),
    entry("", "F64", [1, 1]),
    entry('"quoted\\" \u{1F600}', "BOOL", [1]),
    entry("empty at the end", "F64", [0]),
  ]
  await writeSafetensors(path, entries)
  await using file = await openSafetensors(path)
  t.deepEqual(
    [...file.tensors.keys()],
    entries.map(({ name }) => name),
  )
  for (const { name, data } of entries) t.deepEqual(await file.read(name), data)
  t.is((await file.readF32("scalar")).length, 1)
  t.is((await file.readF32("empty")).length, 0)
})

test("any list of tensors survives writing and reading, from a file and from memory", async (t) => {
  const tensor = fc.record({ dtype: fc.constantFrom(...dtypes), shape: fc.array(fc.nat({ max: 4 }), { maxLength: 4 }) })
  const tensors = fc.array(tensor, { maxLength: 6 })
  const metadata = fc.dictionary(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), { maxKeys: 3 })
  const path = join(folder, "any.safetensors")
  await fc.assert(
    fc.asyncProperty(tensors, metadata, async (list, notes) => {
      const entries = list.map(({ dtype, shape }, i) => entry(`t${i}`, dtype, shape, i))
      const lazy = entries.map((e) => ({ ...e, data: async () => e.data as Uint8Array }))
      await writeSafetensors(path, lazy, { metadata: notes })
      const memory = parseSafetensors(readFileSync(path), path)
      await using file = await openSafetensors(path)
      t.deepEqual({ ...file.metadata }, { ...notes })
      for (const { name, data } of entries) {
        t.deepEqual(await file.read(name), data)
        t.deepEqual(memory.read(name), data)
      }
    }),
    { seed: 2, numRuns: 60 },
  )
})

test("the data start at a multiple of 8, and the header is exactly what the format's text says", async (t) => {
  const path = join(folder, "bytes.safetensors")
  await writeSafetensors(path, [{ name: "w", dtype: "F32", shape: [1], data: Uint8Array.of(1, 2, 3, 4) }])
  const bytes = readFileSync(path)
  const header = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
  t.is(bytes.toString("latin1"), `${String.fromCharCode(header.length)}${"\0".repeat(7)}${header}\x01\x02\x03\x04`)
  t.is(header.length % 8, 0)
})

test("elements of every dtype become the f32 nearest to them", (t) => {
  const values: [TensorDtype, ArrayBufferView, number[]][] = [
    ["F64", Float64Array.of(0.1, -1e300, 1e-60), [Math.fround(0.1), -Infinity, 0]],
    ["F32", Float32Array.of(0.5, -3), [0.5, -3]],
    ["F16", Uint16Array.of(0x3c00, 0xc000, 0x0001), [1, -2, 2 ** -24]],
    ["BF16", Uint16Array.of(0x3f80, 0xc000), [1, -2]],
    ["I64", BigInt64Array.of(-5n, 2n ** 40n), [-5, 2 ** 40]],
    ["U64", BigUint64Array.of(2n ** 63n), [2 ** 63]],
    ["I32", Int32Array.of(-7, 16777217), [-7, 16777216]],
    ["U32", Uint32Array.of(4294967295), [4294967296]],
    ["I16", Int16Array.of(-300), [-300]],
    ["U16", Uint16Array.of(65535), [65535]],
    ["I8", Int8Array.of(-128), [-128]],
    ["U8", Uint8Array.of(255), [255]],
    ["BOOL", Uint8Array.of(0, 1, 7), [0, 1, 1]],
  ]
  t.deepEqual(values.map(([dtype]) => dtype).sort(), [...dtypes].sort())
  for (const [dtype, view, expected] of values) {
    const bytes = new Uint8Array(view.buffer)
    const header = { x: { dtype, shape: [expected.length], data_offsets: [0, bytes.length] } }
    // An odd header length: the tensor's bytes in the file are not aligned for its dtype.
    const file = fileOf(`${JSON.stringify(header)}${" ".repeat(1 - (JSON.stringify(header).length % 2))}`, bytes)
    t.deepEqual([...parseSafetensors(file, "memory").readF32("x")], expected, dtype)
  }
})

test("f32 values written as bf16 and f16 come back as the rounded values", (t) => {
  const values = Float32Array.of(1, 1.0009765625, -3.140625, 70000)
  const read = (dtype: "F32" | "F16" | "BF16") => {
    const data = fromF32(dtype, values)
    const header = { x: { dtype, shape: [4], data_offsets: [0, data.length] } }
    return [...parseSafetensors(fileOf(header, data), "memory").readF32("x")]
  }
  t.deepEqual(read("F32"), [...values])
  t.deepEqual(read("F16"), [1, 1.0009765625, -3.140625, Infinity])
  t.deepEqual(read("BF16"), [1, 1, -3.140625, 70144])
})

test("a tensor can be read in parts, never beyond its end", async (t) => {
  const path = join(folder, "parts.safetensors")
  await writeSafetensors(path, [entry("a", "U8", [100]), entry("b", "U8", [100], 2)])
  await using file = await openSafetensors(path)
  const part = new Uint8Array(10)
  await file.readInto("b", part, 90)
  t.deepEqual(part, (await file.read("b")).slice(90))
  for (const from of [91, -1, 0.5, Number.NaN])
    await t.throwsAsync(file.readInto("b", part, from), { code: "BAD_INPUT" })
})

test("an unknown tensor, a closed file and a file cut while open give their own errors", async (t) => {
  const path = join(folder, "cut.safetensors")
  await writeSafetensors(path, [entry("weight", "F32", [1000]), entry("none", "F32", [0])])
  const file = await openSafetensors(path)
  const unknown = await t.throwsAsync(file.read("weigth"), { code: "NOT_FOUND" })
  t.regex(unknown.message, /did you mean weight\?/)
  await truncate(path, 500)
  const cut = await t.throwsAsync(file.read("weight"), { code: "BAD_FILE" })
  t.regex(cut.message, /cut while open/)
  await file.close()
  await file.close()
  await t.throwsAsync(file.read("weight"), { code: "DISPOSED" })
  await t.throwsAsync(file.readF32("none"), { code: "DISPOSED" })
})

test("closing waits for the reads under way, and they end well or as DISPOSED", async (t) => {
  const path = join(folder, "race.safetensors")
  await writeSafetensors(path, [entry("w", "F32", [100_000])])
  const file = await openSafetensors(path)
  const reads = Array.from({ length: 8 }, () => file.read("w"))
  await file.close()
  for (const result of await Promise.allSettled(reads)) {
    if (result.status === "rejected") t.is(result.reason.code, "DISPOSED")
    else t.is(result.value.length, 400_000)
  }
})

test("no file, a folder and a device are refused by name", async (t) => {
  const missing = await t.throwsAsync(openSafetensors(join(folder, "none")), { code: "NOT_FOUND" })
  t.regex(missing.message, /none: expected a safetensors file, got none there/)
  await t.throwsAsync(openSafetensors(folder), { code: "BAD_FILE" })
  await t.throwsAsync(openSafetensors("/dev/null"), { code: "BAD_FILE" })
  await t.throwsAsync(openSafetensors("a\0b"), { code: "BAD_FILE" })
  writeFileSync(join(folder, "empty"), "")
  await t.throwsAsync(openSafetensors(join(folder, "empty")), { code: "BAD_FILE" })
})

test("entries that do not fit are refused before the old file is touched", async (t) => {
  const path = join(folder, "kept.safetensors")
  writeFileSync(path, "old")
  const data = new Uint8Array(8)
  const wrong: [TensorEntry[], object?][] = [
    [[{ name: "a", dtype: "F32", shape: [3], data }]],
    [[{ name: "a", dtype: "F32", shape: [3], data: async () => data }]],
    [[{ name: "a", dtype: "F32", shape: [3], data: (async () => "text") as never }]],
    [[{ name: "a", dtype: "F32", shape: [-2], data }]],
    [[{ name: "a", dtype: "F32", shape: [0.5, 4], data }]],
    [[{ name: "a", dtype: "F32", shape: [2 ** 30, 2 ** 30], data }]],
    [[{ name: "a", dtype: "Q4" as never, shape: [2], data }]],
    [[{ name: "__metadata__", dtype: "F32", shape: [2], data }]],
    [[{ name: "\ud800", dtype: "F32", shape: [2], data }]],
    [[entry("a", "U8", [1]), entry("a", "U8", [1])]],
    [[], { metadata: { a: 1 as never } }],
    [[], { metdata: {} }],
  ]
  for (const [entries, options] of wrong) {
    const error = await t.throwsAsync(writeSafetensors(path, entries, options), { name: "SelscanError" })
    t.regex(error.message, /expected .*, got .*; |did you mean metadata\?/)
  }
  t.is(readFileSync(path, "utf8"), "old")
})
