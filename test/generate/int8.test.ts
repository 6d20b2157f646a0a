/**
 * Models whose matrices are in 8 bits: what they say beside those in bf16, how they come and go, and where they are refused.
 */
import { join } from "node:path"
import test from "ava"
import { convert } from "../../lib/checkpoint/convert.ts"
import { load, modelFolder } from "../../lib/generate/load.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { embedding } from "../../lib/ops/embedding.ts"
import { linear } from "../../lib/ops/linear.ts"
import { linearCrossEntropy } from "../../lib/ops/linear-cross-entropy.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { device } from "../device.ts"
import { tinyModel } from "./tiny.ts"

const folder = temporaryFolder()
const cpu = { device: "cpu" } as const

/** English that no model here was trained on. */
const text = `The committee met on a Tuesday, late, in the smaller of the two rooms, because the roof of the larger one had begun to
leak again. There were nine of them and eight chairs. Nobody wished to be seen to take the last of these, and so for a while all of
them stood, as people stand at a party, talking of the weather and of the roads; and when at length the chairman, who was a kind man
and tired, sat down upon the window-sill, the rest of them sat too, and found that a chair was left over. "Gentlemen," he said, "we
have before us the matter of the bridge." It had been before them for eleven years. In that time the river had moved a little to the
east, as rivers will, and there were those who held that if they only waited for long enough it would move out of the way altogether.`

for (const name of ["demo", "demo-samba"]) {
  test(`${name}: bits per byte in 8 bits are within 1% of those in bf16`, async (t) => {
    const said: number[] = []
    for (const weights of [undefined, "int8"] as const) {
      await using model = await load(name, { ...cpu, weights })
      said.push(await model.bitsPerByte(text))
    }
    const [halves, eights] = said as [number, number]
    t.true(Math.abs(eights / halves - 1) < 0.01, `${halves} and ${eights}`)
    t.not(eights, halves)
  })

  test(`${name}: rounded while it is loaded, converted first, or saved and loaded, it is one model`, async (t) => {
    const [converted, saved, wide] = ["converted", "saved", "wide"].map((kind) => join(folder, `${name}-${kind}`))
    await using model = await load(name, { ...cpu, weights: "int8" })
    const bits = await model.fingerprint()
    await convert(await modelFolder(name), converted!, { weights: "int8" })
    await using first = await load(converted!, cpu)
    t.is(await first.fingerprint(), bits)
    t.deepEqual(first.int8, model.int8)
    await first.save(saved!)
    await using second = await load(saved!, cpu)
    t.is(await second.fingerprint(), bits)
    t.is(await second.bitsPerByte(text), await model.bitsPerByte(text))
    await first.save(wide!, { dtype: "bf16" })
    await using third = await load(wide!, cpu)
    t.is(third.int8.size, 0)
    await using plain = await load(name, cpu)
    t.true((await model.memory()).weights < 0.62 * (await plain.memory()).weights)
    t.not(await plain.fingerprint(), bits)
  })
}

test("a model of attention in f32 keeps its bits when all its matrices, now in 8 bits, are written", async (t) => {
  const [floats, converted, saved] = ["llama", "llama-converted", "llama-saved"].map((name) => join(folder, name))
  await using tiny = await tinyModel({ ...cpu, kind: "llama" })
  await tiny.save(floats!)
  await using model = await load(floats!, { ...cpu, weights: "int8" })
  t.like(await convert(floats!, converted!, { weights: "int8" }), { int8: true, dtype: "bf16" })
  await model.save(saved!)
  for (const path of [converted!, saved!]) {
    await using again = await load(path, cpu)
    t.is(await again.fingerprint(), await model.fingerprint())
    t.deepEqual([again.precision, again.matrixDtype], [model.precision, model.matrixDtype])
    t.is(await again.bitsPerByte(text), await model.bitsPerByte(text))
  }
})

test("a session goes on from a snapshot with the bits that it would have had", async (t) => {
  await using model = await load("demo", { ...cpu, weights: "int8" })
  using session = model.session()
  await session.append(text.slice(0, 200))
  const snapshot = await session.save()
  using again = await model.session(snapshot)
  const rest: string[] = []
  for (const one of [session, again]) {
    let said = ""
    for await (const piece of one.generate(" and", { maxTokens: 20, seed: 1 })) said += piece
    rest.push(said)
  }
  t.deepEqual(rest[0], rest[1])
  await using plain = await load("demo", cpu)
  await t.throwsAsync(Promise.resolve(plain.session(snapshot)), { code: "BAD_SNAPSHOT" }, "one of other weights")
})

test("words and devices that are none for them are refused", async (t) => {
  const weights = "int4" as "int8"
  const error = await t.throwsAsync(load("demo", { ...cpu, weights }), { code: "BAD_OPTION" })
  t.is(error.message, "load: weights is int8, got int4; leave it out for those of the file")
})

const elsewhere = device === "cpu" ? test.skip : test
elsewhere("another device refuses to round, and takes a file in 8 bits as bf16", async (t) => {
  const error = await t.throwsAsync(load("demo", { device, weights: "int8" }), { code: "BAD_OPTION" })
  t.is(
    error.message,
    `load: weights int8 is for the cpu, got device ${device}; leave it out, or ask for the device cpu`,
  )
  const out = join(folder, "elsewhere")
  await convert(await modelFolder("demo"), out, { weights: "int8" })
  await using model = await load(out, { device })
  t.is(model.matrixDtype, "bf16")
  t.is(model.int8.size, 0)
  await using here = await load(out, cpu)
  const [got, want] = [await model.bitsPerByte(text.slice(0, 40)), await here.bitsPerByte(text.slice(0, 40))]
  t.true(Math.abs(got / want - 1) < 0.02, `${got} and ${want}`)
})

test("no gradient reaches weights in 8 bits", (t) => {
  const ops = [linear, linearCrossEntropy, embedding] as const
  for (const op of ops) {
    const make = () =>
      trace("gradient", (tr) => {
        const x = tr.input("x", "f32", [3, 40])
        const matrix = { weight: tr.weight("w", "i8", [6, 40]), scales: tr.weight("s", "bf16", [6, 2]) }
        const ids = tr.input("ids", "i32", [3])
        const y = op === linear ? linear({ x, ...matrix }).y : undefined
        const losses = op === linearCrossEntropy ? linearCrossEntropy({ x, ...matrix, targets: ids }).losses : undefined
        const of = y ?? losses ?? embedding({ ids, ...matrix }).y
        return {
          dw: gradients(
            [[of, tr.input("dy", "f32", of.shape)]],
            [op === embedding ? matrix.weight : x],
            arithmetic,
          )[0]!,
        }
      })
    t.throws(make, { code: "BAD_INPUT", message: /a weight of f32 or bf16 is expected where gradients are asked for/ })
  }
})

test("a weight of i8 without scales, scales of another size, and scales of other weights are refused", async (t) => {
  await using store = new Store("cpu")
  const program = (dtype: "i8" | "f32", scales?: readonly number[]) =>
    trace("refused", (tr) => {
      const weight = tr.weight(`w ${dtype}`, dtype, [6, 40])
      const given = scales && { scales: tr.weight(`s ${scales}`, "bf16", scales) }
      return { y: linear({ x: tr.input("x", "f32", [3, 40]), weight, ...given }).y }
    })
  await t.throwsAsync(store.compile(program("i8")), { message: /a weight of i8 comes with scales, got none/ })
  await t.throwsAsync(store.compile(program("f32", [6, 2])), {
    message: /scales come with a weight of i8, got them with one of f32/,
  })
  t.throws(() => program("i8", [6, 3]), { message: /linear: scales are one for each 32 of 40, 2, got 3/ })
  t.throws(() => program("i8", [5, 2]), { message: /out is 6 in weight but 5 in scales/ })
})
