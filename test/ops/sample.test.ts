import test, { type ExecutionContext } from "ava"
import fc from "fast-check"
import { trace } from "../../lib/graph/program.ts"
import { type HostArray, Store, setThreads } from "../../lib/native.ts"
import { recordTokens, sample } from "../../lib/ops/sample.ts"
import { device } from "../device.ts"
import { specs } from "./sample.ts"
import { random, values } from "./spec.ts"

const slots = 4

function program(samples: number, vocab: number) {
  return trace("sample", (tr) =>
    sample({
      logits: tr.input("logits", "f32", [samples, vocab]),
      settings: tr.input("settings", "f32", [samples, 6]),
      limits: tr.input("limits", "i32", [samples, 5]),
      position: tr.input("position", "i32", [samples]),
      history: tr.state("history", "i32", [slots, vocab]),
    }),
  )
}

const neutral = [1, 1, 0, 1, 0, 0]
const repeat = <T>(times: number, line: (i: number) => readonly T[]): T[] =>
  Array.from({ length: times }, (_, i) => line(i)).flat()

test("drawn tokens follow the softmax of the logits", async (t) => {
  await using store = new Store(device)
  const weights = [1, 2, 3, 4, 0, 10, 0.5, 6]
  const logits = weights.map((weight) => Math.log(weight))
  const [samples, runs] = [500, 40]
  const executable = await store.compile(program(samples, weights.length))
  const counts = weights.map(() => 0)
  for (let run = 0; run < runs; run++) {
    const { ids } = await executable.run({
      logits: Float32Array.from(repeat(samples, () => logits)),
      settings: Float32Array.from(repeat(samples, () => neutral)),
      limits: Int32Array.from(repeat(samples, () => [0, 12345, 678, 0, 0])),
      position: Int32Array.from({ length: samples }, (_, s) => run * samples + s),
    })
    for (const id of ids!) counts[id]!++
  }
  t.is(counts[4], 0, "a token of probability 0 is never drawn")
  const total = weights.reduce((a, b) => a + b, 0)
  const squares = weights.reduce((all, weight, id) => {
    const expected = (runs * samples * weight) / total
    return expected === 0 ? all : all + (counts[id]! - expected) ** 2 / expected
  }, 0)
  t.true(squares < 35, `χ² with 6 degrees of freedom is above 35 once in 200,000 times, got ${squares}`)
})

test.serial("a sample depends on its own line alone, for any number of threads", async (t) => {
  for (const [samples, vocab] of [
    [33, 301],
    [3, 20_011], // cut into parts that threads share where a sample is alone
  ] as const)
    await dependsOnItsLineAlone(t, samples, vocab)
})

async function dependsOnItsLineAlone(t: ExecutionContext, samples: number, vocab: number): Promise<void> {
  await using store = new Store(device)
  const next = random(3)
  const logits = Float32Array.from({ length: samples * vocab }, () => 6 * next() - 3)
  const settings = [0.9, 0.95, 0.01, 1, 0, 0]
  const many = await store.compile(program(samples, vocab))
  const one = await store.compile(program(1, vocab))
  const inputs = {
    logits,
    settings: Float32Array.from(repeat(samples, () => settings)),
    limits: Int32Array.from(repeat(samples, (s) => [40, s, 1, 0, 0])),
    position: Int32Array.from({ length: samples }, (_, s) => 7 * s),
  }
  const expected = await many.run(inputs)
  const { ids, logprobs } = expected
  const alone = (s: number) =>
    one.run({
      logits: logits.slice(s * vocab, (s + 1) * vocab),
      settings: Float32Array.from(settings),
      limits: Int32Array.of(40, s, 1, 0, 0),
      position: Int32Array.of(7 * s),
    })
  try {
    for (const threads of [1, 3]) {
      await setThreads(threads)
      t.deepEqual(await many.run(inputs), expected)
      for (let s = 0; s < samples; s++)
        t.deepEqual(await alone(s), { ids: ids!.slice(s, s + 1), logprobs: logprobs!.slice(s, s + 1) })
    }
  } finally {
    await setThreads(0)
  }
}

test("slots and positions that cannot be are refused", async (t) => {
  await using store = new Store(device)
  const executable = await store.compile(program(2, 3))
  const run = (slotPairs: readonly number[], position: readonly number[] = [0, 0]) => {
    const [fromA = 0, toA = 0, fromB = 0, toB = 0] = slotPairs
    return executable.run({
      logits: new Float32Array(6),
      settings: Float32Array.from([...neutral, ...neutral]),
      limits: Int32Array.of(0, 1, 1, fromA, toA, 0, 1, 1, fromB, toB),
      position: Int32Array.from(position),
    })
  }
  const refused = async (message: RegExp, slotPairs: readonly number[], position?: readonly number[]) => {
    const error = await t.throwsAsync(run(slotPairs, position), { code: "BAD_INPUT" })
    t.regex(error!.message, message)
  }
  await t.notThrowsAsync(run([1, 1, 2, 3], [0, 2 ** 31 - 1]))
  await refused(/from is a slot in \[0, 4\), got 4 in sample 0/, [4, 0])
  await refused(/from is a slot/, [-1, 0])
  await refused(/to is a slot in \[0, 4\), got 2147483647 in sample 1/, [0, 0, 0, 2 ** 31 - 1])
  await refused(/slot 2 written by samples 0 and 1/, [0, 2, 0, 2])
  await refused(/slot 3 read by sample 0 and written by sample 1/, [3, 1, 0, 3])
  await refused(/position is at least 0, got -1 in sample 1/, [0, 0, 0, 0], [0, -1])
})

test("prompt ids outside the vocabulary are refused", async (t) => {
  await using store = new Store(device)
  const executable = await store.compile(
    trace("record", (tr) => {
      const ids = tr.input("ids", "i32", [3])
      const segments = tr.input("segments", "i32", [2, 5])
      recordTokens({ ids, segments, history: tr.state("history", "i32", [slots, 5]) })
      return {}
    }),
  )
  const run = (ids: readonly number[], ...segments: number[]) =>
    executable.run({
      ids: Int32Array.from(ids),
      segments: Int32Array.from([...segments, ...Array(10).fill(0)].slice(0, 10)),
    })
  await t.notThrowsAsync(run([0, 4, -7], 0, 2, 0, 0, 1))
  for (const id of [5, -1, 2 ** 31 - 1, -(2 ** 31)]) {
    const error = await t.throwsAsync(run([0, id, 0], 0, 2, 0, 0, 1), { code: "BAD_INPUT" })
    t.regex(error!.message, new RegExp(`ids are in \\[0, 5\\), got ${id} in row 1`))
  }
  await t.throwsAsync(run([0, 0, 0], 0, 4, 0, 0, 1), { code: "BAD_INPUT" })
  await t.throwsAsync(run([0, 0, 0], 0, 1, 0, 0, 1, 1, 2, 0, 0, 1), { code: "BAD_INPUT" })
  await t.throwsAsync(run([0, 0, 0], 0, 1, 0, 0, slots), { code: "BAD_INPUT" })
})

test("whatever the numbers, the answer is a token or −1", async (t) => {
  await using store = new Store(device)
  const [samples, vocab] = [3, 70]
  const executable = await store.compile(program(samples, vocab))
  const floats = (length: number) => fc.float32Array({ minLength: length, maxLength: length })
  const ints = (length: number) => fc.int32Array({ minLength: length, maxLength: length })
  const given = fc.record({ logits: floats(samples * vocab), settings: floats(samples * 6), limits: ints(samples * 5) })
  await fc.assert(
    fc.asyncProperty(given, async ({ logits, settings, limits }) => {
      for (let s = 0; s < samples; s++) limits.set([s + 1, 0], 5 * s + 3)
      const { ids, logprobs } = (await executable.run({
        logits,
        settings,
        limits,
        position: new Int32Array(samples),
      })) as Record<"ids" | "logprobs", HostArray>
      ids.forEach((id, s) => {
        const own = logits.slice(s * vocab, (s + 1) * vocab)
        const possible = own.every((logit) => logit < Infinity) && own.some((logit) => logit > -Infinity)
        if (!possible) t.true(id === -1 && Number.isNaN(logprobs[s]), `${id} ${logprobs[s]}`)
        else t.true(id >= 0 && id < vocab && logprobs[s]! <= 1e-6, `${id} ${logprobs[s]}`)
      })
    }),
    { numRuns: 300, seed: 1 },
  )
})

test("of many ties the tokens are those that a plain sort leaves", async (t) => {
  await using store = new Store(device)
  const [samples, vocab] = [8, 257]
  const executable = await store.compile(program(samples, vocab))
  const given = fc.record({
    logits: fc.array(fc.integer({ min: -9, max: 9 }), { minLength: vocab, maxLength: vocab }),
    temperature: fc.constantFrom(0, 0.5, 1, 3, 1e5),
    topP: fc.constantFrom(0, 1e-9, 0.3, 0.5, 0.87, 0.95, 0.999999, 1),
    minP: fc.constantFrom(0, 0.013, 0.27),
    topK: fc.constantFrom(0, 1, 2, 7, 100, 256, 257),
    seed: fc.nat(),
  })
  await fc.assert(
    fc.asyncProperty(given, async ({ logits, temperature, topP, minP, topK, seed }) => {
      const inputs = {
        logits: values(
          "f32",
          [samples, vocab],
          repeat(samples, () => logits),
        ),
        settings: values(
          "f32",
          [samples, 6],
          repeat(samples, () => [temperature, topP, minP, 1, 0, 0]),
        ),
        limits: values(
          "i32",
          [samples, 5],
          repeat(samples, (s) => [topK, seed, s, 0, 0]),
        ),
        position: values(
          "i32",
          [samples],
          repeat(samples, (s) => [s]),
        ),
      }
      const { ids } = (await executable.run({
        logits: Float32Array.from(inputs.logits.data),
        settings: Float32Array.from(inputs.settings.data),
        limits: Int32Array.from(inputs.limits.data),
        position: Int32Array.from(inputs.position.data),
      })) as { ids: HostArray }
      t.deepEqual(Array.from(ids, Number), Array.from(specs[0]!.reference(inputs, {}).ids as Float64Array))
    }),
    { numRuns: 300, seed: 2 },
  )
})
