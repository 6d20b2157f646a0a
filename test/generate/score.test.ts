/**
 * Log-probabilities of texts, whole and after others, and those of the tokens that were not chosen.
 */
import test from "ava"
import { Model } from "../../lib/generate/model.ts"
import { topTokens } from "../../lib/generate/top-tokens.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { device } from "../device.ts"
import { fresh, next, noise } from "./compare.ts"
import { lastNorm, tinyKinds, tinyModel } from "./tiny.ts"

const quick = device === "emulated"
const near = (a: number, b: number) => Math.abs(a - b) <= 2e-5 * Math.max(1, Math.abs(b))

for (const kind of tinyKinds) {
  const name = (title: string) => `${kind}: ${title}`
  const startsAlone = kind === "megabyte"

  test(name("a score is what generating the same tokens says of them"), async (t) => {
    await using model = await tinyModel({ kind })
    using session = model.session()
    const prompt = noise(9)
    const said = []
    for await (const token of session.tokens(prompt, { seed: 2, maxTokens: 30 })) said.push(token)
    const ids = [...prompt, ...said.map(({ id }) => id)]
    const { logprobs, total, bitsPerByte, ids: scored } = await model.score(ids)
    t.deepEqual(scored, ids)
    t.is(logprobs[0] === null, !startsAlone)
    for (const [i, { logprob }] of said.entries()) t.true(near(logprobs[9 + i]!, logprob), `token ${i}`)
    t.is(
      total,
      logprobs.reduce<number>((sum, one) => sum + (one ?? 0), 0),
    )
    t.true(near(bitsPerByte!, await model.bitsPerByte(Uint8Array.from(ids))))
  })

  test(name("a text is scored after what a session holds, which stays as it is"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    for (const [held, length] of [
      [0, 20],
      [1, 1],
      [2, 40],
      [5, 3],
      [30, 30],
      [30, quick ? 70 : 1100],
    ] as const) {
      const [text, more] = [noise(held), noise(length, 4)]
      using session = model.session()
      await session.append(text)
      const before = await session.save()
      const { logprobs, ids } = await session.score(more)
      t.deepEqual(ids, more)
      const whole = await model.score([...text, ...more])
      t.deepEqual(logprobs, whole.logprobs.slice(held), `${length} after ${held}`)
      t.deepEqual(await session.save(), before)
      t.deepEqual(await next(session, [65]), await fresh(model, [...text, 65]))
    }
  })

  test(name("a score that is aborted leaves the session as it was"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    using session = model.session()
    await session.append(noise(30))
    for (const runs of quick ? [1] : [1, 2]) {
      const controller = new AbortController()
      let count = 0
      const onProgress = () => ++count === runs && controller.abort()
      const scoring = session.score(noise(quick ? 1100 : 3500), { signal: controller.signal, onProgress })
      t.like(await t.throwsAsync(scoring), { code: "ABORTED" })
      t.is(session.length, 30)
    }
    t.deepEqual(await next(session), await fresh(model, noise(30)))
  })

  test(name("the most probable tokens come with their log-probabilities, and change nothing"), async (t) => {
    await using model = await tinyModel({ kind })
    const options = { seed: 3, maxTokens: 12 }
    using plain = model.session()
    using session = model.session()
    const [without, tokens] = [[], []] as { id: number; logprob: number; top?: unknown }[][]
    for await (const token of plain.tokens("abc", options)) without!.push(token)
    for await (const token of session.tokens("abc", { ...options, topLogprobs: 20 })) {
      const { id, logprob, top = [] } = token
      tokens!.push({ id, logprob })
      t.is(top.length, 20)
      t.deepEqual(
        top.map((one) => one.logprob).sort((a, b) => b - a),
        top.map((one) => one.logprob),
      )
      t.is(new Set(top.map((one) => one.id)).size, 20)
      t.true(top.every((one) => one.logprob >= logprob || top.some((other) => other.id === id)))
      const same = top.find((one) => one.id === id)
      if (same) t.is(same.logprob, logprob)
      t.true(top.reduce((sum, one) => sum + Math.exp(one.logprob), 0) <= 1 + 1e-6)
    }
    t.deepEqual(tokens, without)
    const greedy = model.session().tokens("abc", { temperature: 0, topLogprobs: 1, maxTokens: 3 })
    for await (const { id, logprob, top } of greedy) t.deepEqual(top, [{ id, logprob }])
  })
}

test("scores are refused in one sentence where there is nothing to judge", async (t) => {
  await using model = await tinyModel({ kind: "llama", contextMax: 64 })
  using session = model.session()
  t.like(await t.throwsAsync(model.score("")), { code: "BAD_INPUT" })
  t.like(await t.throwsAsync(session.score("")), { code: "BAD_INPUT" })
  t.like(await t.throwsAsync(model.score([256])), { code: "BAD_INPUT" })
  t.like(await t.throwsAsync(model.score("x", { contxt: 1 } as object)), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(model.score("x", { context: 0 })), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(session.score("x", { context: 5 } as object)), { code: "BAD_OPTION" })
  await session.append(noise(60))
  t.is((await session.score(noise(5))).logprobs.length, 5) // the last is judged, and never read
  const message = /contextMax = 64 tokens, got 60 and 5 more/
  t.like(await t.throwsAsync(session.score(noise(6)), { message }), { code: "BAD_INPUT" })
  for (const topLogprobs of [-1, 21, 1.5, Number.NaN]) {
    const refusal = { message: /topLogprobs is a whole number from 0 to 20/ }
    t.like(await t.throwsAsync(model.session().tokens("x", { topLogprobs }).next(), refusal), { code: "BAD_OPTION" })
  }
})

test("a context empties the state in scores as in bits per byte", async (t) => {
  await using model = await tinyModel({ kind: "samba" })
  const text = Uint8Array.from(noise(50))
  const { logprobs } = await model.score(text, { context: 16 })
  const second = await model.score(text.subarray(16, 33))
  t.deepEqual(logprobs.slice(17, 33), second.logprobs.slice(1))
  t.true(near((await model.score(text, { context: 16 })).bitsPerByte!, await model.bitsPerByte(text, { context: 16 })))
})

test("a model whose tokens are not bytes scores ids, without bits per byte", async (t) => {
  await using model = new Model(new PatternModel(modelConfig({ dim: 16, layers: 1, vocab: 64 })), "f32", { device })
  const { logprobs, bitsPerByte } = await model.score([1, 2, 3])
  t.is(bitsPerByte, undefined)
  t.is(logprobs[0], null)
  for (const logprob of logprobs.slice(1)) t.true(near(logprob!, -Math.log(64))) // its weights are zeros
})

test("weights that are not numbers are named by a score", async (t) => {
  await using broken = await tinyModel()
  const name = lastNorm("mamba")
  await broken.store.upload("weight", { name, dtype: "f32", shape: [16] }, new Float32Array(16).fill(Number.NaN))
  t.like(await t.throwsAsync(broken.score("some text")), { code: "NOT_FINITE" })
  using session = broken.session()
  t.like(await t.throwsAsync(session.score("some text")), { code: "NOT_FINITE" })
})

test("the greatest logits are found with ties by the lower id, and without those of probability 0", (t) => {
  const none = Number.NEGATIVE_INFINITY
  const logits = Float32Array.of(1, 3, none, 3, 2, 3)
  const chosen = { id: 4, logprob: -1.5 }
  t.deepEqual(topTokens(logits, chosen, 3), [
    { id: 1, logprob: -0.5 },
    { id: 3, logprob: -0.5 },
    { id: 5, logprob: -0.5 },
  ])
  t.deepEqual(
    topTokens(logits, chosen, 20).map(({ id }) => id),
    [1, 3, 5, 4, 0],
  )
})

test("options are judged, and a signal that has fired is obeyed, also where nothing is left to run", async (t) => {
  await using model = await tinyModel({ sessions: 1 })
  using session = model.session()
  const signal = AbortSignal.abort()
  const wrong = { signal: 5 } as object
  const cases: [() => Promise<unknown>, string, RegExp][] = [
    [() => session.append("a", { signal }), "ABORTED", /^append: aborted before it began$/],
    [
      () => session.append("a", { sginal: signal } as object),
      "BAD_OPTION",
      /^append: unknown option sginal, did you mean/,
    ],
    [() => session.append("a", null as unknown as object), "BAD_OPTION", /^append: options are an object, got null$/],
    [() => session.append("a", wrong), "BAD_OPTION", /^append: signal is an AbortSignal, got number$/],
    [() => session.tokens("a", { signal, maxTokens: 0 }).next(), "ABORTED", /^generate: aborted before it began$/],
    [() => session.score("a", { signal }), "ABORTED", /^score: aborted before it began$/],
    [
      () => session.score("ab", { onProgress: 5 } as object),
      "BAD_OPTION",
      /^score: onProgress is a function, got number$/,
    ],
    [() => model.score("a", { signal }), "ABORTED", /^score: aborted before it began$/],
    [() => model.bitsPerByte("a", wrong), "BAD_OPTION", /^bitsPerByte: signal is an AbortSignal, got number$/],
  ]
  for (const [call, code, message] of cases) t.like(await t.throwsAsync(call, { message }), { code })
  t.is(session.length, 0)
})
