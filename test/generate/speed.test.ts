import test from "ava"
import { randomModel } from "../../lib/generate/random-weights.ts"
import { OwnPrograms, promptIds } from "../../lib/generate/side-by-side.ts"
import { type SpeedSizes, sequencesOf, speed, stateBytes } from "../../lib/generate/speed.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { Store } from "../../lib/native.ts"
import { device } from "../device.ts"
import { type TinyKind, tinyModel } from "./tiny.ts"

const small = { prefill: 21, decode: 6, batch: 1, repeats: 1, blockBytes: 4 << 10 }
const kinds: readonly TinyKind[] = ["mamba", "samba", "llama", "linear"]

/** What a session writes greedily after the prompt of one of the sequences. */
async function alone(model: Awaited<ReturnType<typeof tinyModel>>, sequence: number, sizes: SpeedSizes) {
  using session = model.session()
  const ids: number[] = []
  const prompt = promptIds(sequence, sizes, model.network.vocab)
  for await (const { id } of session.tokens(prompt, { maxTokens: sizes.decode, temperature: 0, seed: 0 })) ids.push(id)
  return ids
}

for (const kind of kinds) {
  test(`three sequences of a ${kind} side by side write what each writes alone, in every round`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 4 })
    const sizes = { ...small, batch: 3 }
    const expected = await Promise.all([0, 1, 2].map((sequence) => alone(model, sequence, sizes)))
    t.not(JSON.stringify(expected[0]), JSON.stringify(expected[1]), "prompts that differ are written on differently")
    await using programs = new OwnPrograms(model)
    using sequences = await sequencesOf(model, sizes, programs)
    for (let round = 0; round < 2; round++) {
      await sequences.read(undefined)
      t.deepEqual(await sequences.write(undefined), expected)
    }
  })
}

for (const kind of [...kinds, "megabyte"] as const) {
  test(`one sequence of a ${kind} is a session, and every number is one`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    await using programs = new OwnPrograms(model)
    using sequences = await sequencesOf(model, small, programs)
    await sequences.read(undefined)
    await using other = await tinyModel({ kind })
    t.deepEqual(await sequences.write(undefined), [await alone(other, 0, small)])
    sequences[Symbol.dispose]()

    const rounds: string[] = []
    const onProgress = (done: number, all: number) => rounds.push(`${done}/${all}`)
    const result = await speed(model, { ...small, repeats: 2, onProgress })
    for (const { median, min, max } of [result.prefill, result.decode])
      t.true(0 < min && min <= median && median <= max)
    t.true(result.readBandwidth > 0 && result.share > 0 && Number.isFinite(result.share))
    t.deepEqual(rounds, ["1/3", "2/3", "3/3"])
    const floats = [...allParameters(model.network).values()].map(({ shape }) => shape.reduce((a, b) => a * b, 1))
    t.is(result.bytes.weights, 4 * floats.reduce((a, b) => a + b, 0))
    t.true(result.bytes.perToken <= result.bytes.weights + result.bytes.state)
    t.is(result.bytes.state, stateBytes(model.kept, Math.ceil(small.prefill + small.decode / 2)))
  })
}

test("a program of several sequences is compiled once for all that take turns, and goes when it is disposed of", async (t) => {
  await using model = await tinyModel({ sessions: 3 })
  const compiled: string[] = []
  const compile: Store["compile"] = (program, options) => {
    compiled.push(program.name)
    return Store.prototype.compile.call(model.store, program, options)
  }
  Object.assign(model.store, { compile })
  const programs = new OwnPrograms(model)
  for (const batch of [2, 3, 2, 3]) {
    using sequences = await sequencesOf(model, { ...small, batch }, programs)
    await sequences.read(undefined)
    await sequences.write(undefined)
  }
  t.deepEqual(
    compiled.filter((name) => name.startsWith("next")),
    ["next of 2", "next of 3"],
  )
  const last = await programs.next(2)
  await programs[Symbol.asyncDispose]()
  await t.throwsAsync(last.profile(), { code: "DISPOSED" })
  t.not(await programs.next(2), last)
  await programs[Symbol.asyncDispose]()
})

test("a token of several sequences reads the weights once for all, and the stage over patches once for each patch", async (t) => {
  await using model = await tinyModel({ sessions: 2 })
  const [one, two] = [await speed(model, small), await speed(model, { ...small, batch: 2 })]
  t.is(one.bytes.perToken, one.bytes.weights + one.bytes.state)
  t.is(two.bytes.perToken, Math.round(one.bytes.weights / 2 + one.bytes.state))
  await using megabyte = await tinyModel({ kind: "megabyte" })
  const { bytes } = await speed(megabyte, small)
  t.true(bytes.perToken - bytes.state < bytes.weights, "the stage over patches is read once for three bytes")
})

test("places are given back, whatever ends the measurement, and sessions that are open stay as they are", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 3 })
  using held = model.session()
  await held.append("what a session holds")
  for (const batch of [1, 3]) {
    for (const rounds of [0, 1, 2]) {
      const stop = new AbortController()
      if (rounds === 0) stop.abort()
      const onProgress = (done: number) => done === rounds && stop.abort()
      const measured = speed(model, { ...small, batch, repeats: 3, signal: stop.signal, onProgress })
      await t.throwsAsync(measured, { code: "ABORTED" })
    }
    const thrower = () => {
      throw new Error("thrown by the caller")
    }
    await t.throwsAsync(speed(model, { ...small, batch, onProgress: thrower }), { message: "thrown by the caller" })
  }
  const open = [model.session(), model.session(), model.session()]
  await Promise.all(open.map((session) => session.append("abc")))
  for (const session of open) session.dispose()
  await t.notThrowsAsync(speed(model, { ...small, batch: 3 }))
  t.is(held.length, "what a session holds".length)
  const [fresh] = await Promise.all([model.score("and what comes after"), held.score(" and after")])
  t.true(Number.isFinite(fresh.total))
})

test("more sequences than places, sizes that are none and tokens beyond contextMax are refused", async (t) => {
  await using model = await tinyModel({ kind: "llama", sessions: 2, contextMax: 64 })
  await t.throwsAsync(speed(model, { ...small, batch: 3 }), { code: "SLOTS_EXHAUSTED" })
  await t.notThrowsAsync(speed(model, { ...small, batch: 2 }), "what was taken before is given back")
  for (const name of ["prefill", "decode", "batch", "repeats", "blockBytes"]) {
    for (const bad of [0, -1, 1.5, Number.NaN, "8"]) {
      await t.throwsAsync(speed(model, { ...small, [name]: bad }), { code: "BAD_OPTION", message: new RegExp(name) })
    }
  }
  await t.throwsAsync(speed(model, { ...small, blockBytes: 6 }), { code: "BAD_OPTION" })
  await t.throwsAsync(speed(model, { ...small, prefil: 1 } as never), {
    message: /unknown option prefil, did you mean prefill\?/,
  })
  await t.notThrowsAsync(speed(model, { ...small, prefill: 57, decode: 6 }))
  await t.throwsAsync(speed(model, { ...small, prefill: 58, decode: 6 }), { code: "BAD_INPUT" })
  await using patches = await tinyModel({ kind: "megabyte" })
  await t.throwsAsync(speed(patches, { ...small, batch: 2 }), { code: "BAD_OPTION", message: /reads patches/ })
})

// The whole of it takes an emulator minutes.
const runner = device === "emulated" ? test.skip : test
runner("a preset has random weights, the same every time, that run", async (t) => {
  const measured = async () => {
    await using model = await randomModel("samba-byte", "bf16", { device, sessions: 1 })
    using session = model.session()
    const ids: number[] = []
    for await (const { id } of session.tokens("some text", { maxTokens: 8, temperature: 0 })) ids.push(id)
    return { ids, dtype: model.matrixDtype, ...(await speed(model, small)).bytes }
  }
  const [first, second] = [await measured(), await measured()]
  t.deepEqual(first, second)
  t.is(first.dtype, "bf16")
  await t.throwsAsync(randomModel("samba-bite"), { code: "BAD_OPTION", message: /did you mean samba-byte\?/ })
})

test.serial(
  "a preset that does not fit, or whose making is aborted, is refused, and nothing stays behind",
  async (t) => {
    const { availableMemory } = process
    t.teardown(() => Object.assign(process, { availableMemory }))
    await t.throwsAsync(randomModel("samba-byte", "f32", { device: "cpu" }, AbortSignal.abort()), { code: "ABORTED" })
    Object.assign(process, { availableMemory: () => 1e6 })
    await t.throwsAsync(randomModel("samba-byte", "f32", { device: "cpu" }), {
      code: "OUT_OF_MEMORY",
      message:
        /^preset samba-byte: \d+ bytes of memory are expected for its weights in f32, got 1000000; choose a smaller one$/,
    })
  },
)
