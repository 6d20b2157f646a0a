import { readFileSync, writeFileSync } from "node:fs"
import { cp } from "node:fs/promises"
import { join } from "node:path"
import test from "ava"
import { convert } from "../../lib/checkpoint/convert.ts"
import { fromF32, toF32 } from "../../lib/checkpoint/dtypes.ts"
import { parseConfig } from "../../lib/checkpoint/families.ts"
import { bf16ToF32, f16ToF32 } from "../../lib/checkpoint/halves.ts"
import { fromInt8, scalesOf, toInt8, wide } from "../../lib/checkpoint/int8.ts"
import { openSafetensors, type TensorEntry, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { openWeights } from "../../lib/checkpoint/shards.ts"
import { load } from "../../lib/generate/load.ts"
import { random } from "../ops/spec.ts"
import { temporaryFolder } from "./helpers.ts"
import { mamba, writeModel } from "./model-folder.ts"

const folder = temporaryFolder()
const source = join(folder, "source")
const eight = join(folder, "eight")
test.before(async () => {
  await writeModel(source, { ...mamba, dim: 32 }, { dtype: "BF16" })
  await convert(source, eight, { weights: "int8" })
})

let places = 0
const newPlace = (name = "out") => join(folder, `place-${places++}-${name}`)
const inProj = "backbone.layers.0.mixer.in_proj.weight"

/** Rows of numbers of very different sizes, with groups of zeros, of the smallest and of the largest numbers. */
function numbers(rows: number, columns: number): Float32Array {
  const next = random(rows * 1000 + columns)
  const sizes = [0, 2 ** -149, 2 ** -130, 1e-30, 1e-3, 1, 1e4, 3.4e38]
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const group = Math.floor(i / columns) + Math.floor((i % columns) / 32)
    return (2 * next() - 1) * sizes[group % sizes.length]!
  })
}

for (const columns of [1, 31, 32, 33, 64, 127, 1024]) {
  test(`rows of ${columns} come within half a scale, and rounding them again changes nothing`, (t) => {
    const values = numbers(9, columns)
    const { q, scales } = toInt8(values, columns)
    t.is(scales.length, 9 * Math.ceil(columns / 32))
    t.true(q.every((one) => one >= -127))
    const floats = bf16ToF32(scales)
    const back = fromInt8(q, 0, columns, floats)
    const within = Array.from(values).every((value, i) => {
      const scale = floats[Math.floor(i / columns) * Math.ceil(columns / 32) + Math.floor((i % columns) / 32)]!
      return Math.abs(value - back[i]!) <= (scale / 2) * (1 + 2 ** -20)
    })
    t.true(within)
    t.deepEqual(toInt8(back, columns), { q, scales })
  })
}

test("parts of rows are rounded, and read, as the whole is", (t) => {
  const [columns, values] = [200, numbers(5, 200)]
  const whole = toInt8(values, columns)
  const floats = bf16ToF32(whole.scales)
  const back = fromInt8(whole.q, 0, columns, floats)
  t.deepEqual(toInt8(values.subarray(264, 328), columns).q, whole.q.subarray(264, 328)) // two groups of row 1
  for (const [at, count] of [
    [0, 1],
    [31, 2],
    [190, 20],
    [399, 402],
    [999, 1],
  ] as const) {
    const of = scalesOf(columns, at, count)
    const some = floats.subarray(of.first, of.first + of.count)
    t.deepEqual(fromInt8(whole.q.slice(at, at + count), at, columns, some, of.first), back.slice(at, at + count))
  }
})

test("a converted folder has the matrices in 8 bits, and everything else as it was", async (t) => {
  await using before = await openSafetensors(join(source, "model.safetensors"))
  await using after = await openSafetensors(join(eight, "model.safetensors"))
  const config = JSON.parse(readFileSync(join(eight, "config.json"), "utf8"))
  t.like(config.quantization_config, { quant_method: "compressed-tensors", format: "int-quantized" })
  t.like(config.quantization_config.config_groups.group_0.weights, { num_bits: 8, group_size: 32, symmetric: true })
  t.true(config.quantization_config.ignore.includes("backbone.layers.0.mixer.x_proj"))
  for (const [name, { dtype, shape }] of before.tensors) {
    const got = after.tensors.get(name)!
    t.deepEqual(got.shape, shape)
    if (!/(in_proj|out_proj|embedding)\.weight$/.test(name)) {
      t.is(got.dtype, dtype, name)
      t.deepEqual(await after.read(name), await before.read(name), name)
      continue
    }
    const { q, scales } = toInt8(toF32(dtype, await before.read(name)), shape[1]!)
    t.is(got.dtype, "I8")
    t.deepEqual(new Int8Array((await after.read(name)).slice().buffer), q, name)
    t.deepEqual(new Uint16Array((await after.read(`${name}_scale`)).slice().buffer), scales, name)
  }
})

test("a folder in 8 bits is converted to another with the same bits, and to other dtypes as the numbers that it stands for", async (t) => {
  const [again, floats, back] = [newPlace(), newPlace(), newPlace()]
  t.like(await convert(eight, again, { to: "transformers" }), { int8: true, dtype: "bf16" })
  await convert(again, back, { to: "selscan" })
  await using first = await openSafetensors(join(eight, "model.safetensors"))
  await using second = await openSafetensors(join(back, "model.safetensors"))
  t.is(first.tensors.size, second.tensors.size)
  await using shown = wide(await openWeights(eight), true)
  t.like(await convert(eight, floats, { dtype: "f32" }), { int8: false, dtype: "f32" })
  await using plain = await openSafetensors(join(floats, "model.safetensors"))
  t.is(shown.tensors.get(inProj)!.dtype, "F32")
  t.false(shown.tensors.has(`${inProj}_scale`))
  const got = new Uint8Array(shown.tensors.get(inProj)!.sizeBytes)
  await shown.readInto(inProj, got)
  t.deepEqual(got, new Uint8Array(await plain.read(inProj)))
  t.deepEqual(toInt8(toF32("F32", got), 32).q, new Int8Array((await first.read(inProj)).slice().buffer))
  await using model = await load(floats, { device: "cpu" })
  t.deepEqual([model.int8.size, model.matrixDtype], [0, "f32"], "nothing of 8 bits stays behind")
})

test("in GGUF they are blocks of Q8_0", async (t) => {
  const out = newPlace("model.gguf")
  t.like(await convert(source, out, { weights: "int8" }), { int8: true, to: "gguf" })
  const file = readFileSync(out)
  await using plain = await openSafetensors(join(source, "model.safetensors"))
  const { q, scales } = toInt8(toF32("BF16", await plain.read(inProj)), 32)
  const block = Buffer.from(q.buffer, 0, 32)
  const at = file.indexOf(block)
  t.true(at > 0, "the first group stands in the file")
  t.is(f16ToF32(Uint16Array.of(file.readUInt16LE(at - 2)))[0], bf16ToF32(scales)[0], "behind its scale")
  t.deepEqual(file.subarray(at + 34, at + 66), Buffer.from(q.buffer, 32, 32), "and the next 34 bytes on")
})

test("options that are none are refused", async (t) => {
  const weights = "int4" as "int8"
  const error = await t.throwsAsync(convert(source, newPlace(), { weights }), { code: "BAD_OPTION" })
  t.is(error.message, "convert: weights is int8, got int4; leave it out for those of the file")
})

/** The folder in 8 bits with its tensors changed. */
async function spoilt(change: (entries: Map<string, TensorEntry>) => void): Promise<string> {
  const out = newPlace()
  await cp(eight, out, { recursive: true })
  await using file = await openSafetensors(join(eight, "model.safetensors"))
  const entries = new Map<string, TensorEntry>()
  for (const [name, { dtype, shape }] of file.tensors) {
    entries.set(name, { name, dtype, shape, data: new Uint8Array(await file.read(name)) })
  }
  change(entries)
  await writeSafetensors(join(out, "model.safetensors"), [...entries.values()])
  return out
}

test("what a file in 8 bits has left wide stays so: loaded, saved, converted and in GGUF", async (t) => {
  const name = "backbone.embedding.weight"
  await using plain = await openSafetensors(join(source, "model.safetensors"))
  const { dtype, shape } = plain.tensors.get(name)!
  const data = new Uint8Array(await plain.read(name))
  const partial = await spoilt((all) => {
    all.set(name, { name, dtype, shape, data })
    all.delete(`${name}_scale`)
  })
  const [converted, saved, gguf] = [newPlace(), newPlace(), newPlace("model.gguf")]
  t.like(await convert(partial, converted, { to: "transformers" }), { int8: true, dtype: "bf16" })
  await using model = await load(partial, { device: "cpu" })
  t.true(model.int8.has(inProj) && !model.int8.has(name))
  await model.save(saved)
  for (const [path, embedding] of [
    [converted, "backbone.embeddings.weight"],
    [saved, name],
  ] as const) {
    await using file = await openSafetensors(join(path, "model.safetensors"))
    t.deepEqual(new Uint8Array(await file.read(embedding)), data)
    t.is(file.tensors.get(inProj)?.dtype, "I8")
    const { quantization_config: said } = JSON.parse(readFileSync(join(path, "config.json"), "utf8"))
    t.true(said.ignore.includes(embedding.replace(".weight", "")))
    await using again = await load(path, { device: "cpu" })
    t.deepEqual(again.int8, model.int8)
    t.is(await again.fingerprint(), await model.fingerprint())
  }
  t.like(await convert(partial, gguf), { int8: true, dtype: "bf16" })
  t.true(readFileSync(gguf).includes(Buffer.from(data)), "as bf16 there too")
  t.like(await convert(partial, newPlace(), { weights: "int8" }), { int8: true })
})

test("tensors are one where their scales are, too", (t) => {
  const tensor = (name: string, dtype: "I8" | "BF16", shape: number[]) => ({ name, dtype, shape, sizeBytes: 0 })
  const names = ["a", "b"]
  const tensors = new Map(
    names
      .flatMap((name) => [tensor(name, "I8", [2, 32]), tensor(`${name}_scale`, "BF16", [2, 1])])
      .map((one) => [one.name, one]),
  )
  const of = (shared: readonly string[]) => {
    const readInto = async () => {}
    const close = readInto
    const same = (name: string) => shared.includes(name)
    return wide({ path: "file", tensors, readInto, same, close, [Symbol.asyncDispose]: close }, true)
  }
  t.true(of(["a", "a_scale"]).same?.("a", "b"))
  t.false(of(["a"]).same?.("a", "b"))
  t.false(of([]).same?.("a", "b"))
})

const scales = `${inProj}_scale`
const withScales = (dtype: "BF16" | "F16" | "F32" | "I32", shape: number[], value = 0.01) => {
  const count = shape.reduce((product, dim) => product * dim, 1)
  const floats = new Float32Array(count).fill(value)
  const data = dtype === "I32" ? new Uint8Array(4 * count) : fromF32(dtype, floats)
  return { name: scales, dtype, shape, data }
}

test("scales that are missing, of another shape or of another kind are told of by name", async (t) => {
  const rows = 128
  const cases: [(entries: Map<string, TensorEntry>) => void, RegExp][] = [
    [(all) => all.delete(scales), /expected scales of BF16, F16, F32 \[128,1\], got none; get the file again/],
    [(all) => all.set(scales, withScales("BF16", [rows, 2])), /\[128,1\], got BF16 \[128,2\]/],
    [(all) => all.set(scales, withScales("BF16", [rows])), /\[128,1\], got BF16 \[128\]/],
    [(all) => all.set(scales, withScales("I32", [rows, 1])), /\[128,1\], got I32 \[128,1\]/],
    [
      (all) => all.set("a", { ...all.get(inProj)!, name: "a", shape: [128 * 32] }),
      /"a": expected a matrix in 8 bits, got \[4096\]/,
    ],
    [(all) => all.set("b_scale", { ...withScales("BF16", [2, 1]), name: "b_scale" }), /b_scale unexpected/],
  ]
  for (const [change, message] of cases) {
    const error = await t.throwsAsync(convert(await spoilt(change), newPlace()), { code: "BAD_CHECKPOINT" })
    t.regex(error.message, message)
  }
})

test("a scale that is no number is told of, and q of −128 is a number as any other", async (t) => {
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const path = await spoilt((all) => all.set(scales, withScales("F32", [128, 1], value)))
    await t.throwsAsync(convert(path, newPlace()), { code: "NOT_FINITE", message: /in_proj\.weight: finite weights/ })
  }
  for (const dtype of ["F16", "F32"] as const) {
    const path = await spoilt((all) => {
      all.set(inProj, { ...all.get(inProj)!, data: new Uint8Array(128 * 32).fill(128) })
      all.set(scales, withScales(dtype, [128, 1], 0.5))
    })
    await using shown = wide(await openWeights(path), true)
    const got = new Uint8Array(4)
    await shown.readInto(inProj, got)
    t.is(new Float32Array(got.buffer)[0], -64)
  }
})

test("weights that are rounded in another way are refused by the config's field", (t) => {
  const config = JSON.parse(readFileSync(join(eight, "config.json"), "utf8"))
  const { quantization_config: said } = config
  const group = said.config_groups.group_0
  const weights = (fields: object) => ({
    ...said,
    config_groups: { group_0: { ...group, weights: { ...group.weights, ...fields } } },
  })
  const cases: [unknown, RegExp][] = [
    [{ ...said, format: "pack-quantized" }, /quantization_config\.format to be int-quantized, got "pack-quantized"/],
    [{ ...said, config_groups: {} }, /config_groups\.group_0 to be an object, got none/],
    [weights({ num_bits: 4 }), /group_0\.weights\.num_bits to be 8, got 4/],
    [weights({ group_size: 128 }), /weights\.group_size to be 32, got 128/],
    [weights({ strategy: "channel" }), /weights\.strategy to be "group", got "channel"/],
    [weights({ symmetric: false }), /weights\.symmetric to be true, got false/],
    [{ ...said, config_groups: { group_0: { ...group, input_activations: {} } } }, /input_activations to be none/],
    ["int8", /quantization_config to be an object, got "int8"/],
  ]
  for (const [quantization_config, message] of cases) {
    const text = JSON.stringify({ ...config, quantization_config })
    const error = t.throws(() => parseConfig(text, "config.json"), { code: "BAD_CHECKPOINT" })
    t.regex(error?.message ?? "", message)
  }
  const plain = join(folder, "without")
  writeFileSync(plain, JSON.stringify({ ...config, quantization_config: null }))
  t.is(parseConfig(readFileSync(plain, "utf8"), plain).int8, undefined)
})
