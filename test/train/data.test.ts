import test from "ava"
import { bitsPerByte } from "../../lib/generate/score.ts"
import { Streams, splitValidation } from "../../lib/train/data.ts"
import { learningRate } from "../../lib/train/schedule.ts"

const text = Uint8Array.from({ length: 1000 }, (_, i) => i % 251)
const streams = () => new Streams(text, { streams: 3, length: 16, seed: 4, reset: 0.2 })

test("what a stream reads is a function of seed and step alone", (t) => {
  const [a, b] = [streams(), streams()]
  for (let step = 30; step >= 0; step--) a.sequence(1, step)
  for (let step = 0; step < 30; step++) t.deepEqual(a.sequence(1, step), b.sequence(1, step))
})

test("a stream goes on where it stopped, and targets are the bytes after the inputs", (t) => {
  const data = streams()
  for (let step = 0; step < 100; step++) {
    const { ids, targets } = data.sequence(2, step)
    t.deepEqual([...ids.slice(1)], [...targets.slice(0, -1)])
    t.is(data.sequence(2, step + 1).ids[0], targets.at(-1))
  }
})

test("the first sequence of every stream starts from a zero state, later ones now and then", (t) => {
  const data = streams()
  t.true([0, 1, 2].every((stream) => data.sequence(stream, 0).fresh))
  const fresh = Array.from({ length: 500 }, (_, step) => data.sequence(0, step + 1).fresh).filter(Boolean).length
  t.true(fresh > 60 && fresh < 180, `${fresh} of 500 at a probability of 0.2, and where the text ends`)
})

test("positions count from where a stream last started fresh, whichever step is asked for first", (t) => {
  const [data, later] = [streams(), streams()]
  const positions = Array.from({ length: 80 }, (_, step) => data.sequence(1, step))
  let wanted = 0
  for (const [step, { fresh, position }] of positions.entries()) {
    wanted = fresh ? 0 : wanted + 16
    t.is(position, wanted, `at step ${step}`)
  }
  t.true(Math.max(...positions.map(({ position }) => position)) > 32, "some stream runs on")
  for (const step of [79, 40, 41, 79]) t.is(later.sequence(1, step).position, positions[step]!.position)
})

test("no sequence passes contextMax", (t) => {
  const data = new Streams(text, { streams: 2, length: 16, seed: 4, reset: 0, contextMax: 40 })
  const positions = Array.from({ length: 50 }, (_, step) => data.sequence(0, step).position)
  t.deepEqual(positions.slice(0, 6), [0, 16, 0, 16, 0, 16])
  t.true(positions.every((position) => position + 16 <= 40))
  const tooLong = { streams: 1, length: 41, seed: 1, reset: 0, contextMax: 40 }
  t.like(
    t.throws(() => new Streams(text, tooLong), { message: /length is at most the model's contextMax, 40, got 41/ }),
    { code: "BAD_OPTION" },
  )
})

test("validation is cut out of the text, and nothing is lost", (t) => {
  const { train, validation } = splitValidation(text, 0.1, 4)
  t.is(validation.length, 4)
  t.is(train.length + validation.reduce((total, piece) => total + piece.length, 0), text.length)
  t.deepEqual(splitValidation(text, 0), { train: text, validation: [] })
})

test("the learning rate rises linearly and falls as half a cosine", (t) => {
  const schedule = { steps: 110, warmup: 10, rate: 1, minRate: 0.1 }
  t.is(learningRate(0, schedule), 0.1)
  t.is(learningRate(9, schedule), 1)
  t.is(learningRate(10, schedule), 1)
  t.true(Math.abs(learningRate(60, schedule) - 0.55) < 1e-12)
  t.true(Math.abs(learningRate(110, schedule) - 0.1) < 1e-12)
})

test("the first byte is charged eight bits", (t) => {
  t.is(bitsPerByte(Float32Array.of(Number.NaN)), 8)
  t.is(bitsPerByte(Float32Array.of(Number.NaN, 2 * Math.LN2, 2 * Math.LN2)).toFixed(5), "4.00000")
})
