/**
 * Tokens that are computed ahead: the same bits as one by one, and nothing of them is seen that was not asked for.
 */
import test from "ava"
import type { Model } from "../../lib/generate/model.ts"
import type { Session, Token } from "../../lib/generate/session.ts"
import type { Executable } from "../../lib/native.ts"
import { device } from "../device.ts"
import { fresh, next, noise } from "./compare.ts"
import { tinyKinds, tinyModel } from "./tiny.ts"

const quick = device === "emulated"
const unbounded = 1e6
const prompt = noise(9)
type Steps = Executable["steps"]

/** A model whose runs of several steps pass through `change`. */
function changed(model: Model, change: (steps: Steps) => Steps): void {
  const step = model.step.bind(model)
  model.step = async (...shape) => {
    const executable = await step(...shape)
    const steps = change(executable.steps.bind(executable))
    return new Proxy(executable, {
      get: (target, key) => {
        if (key === "steps") return steps
        const value = target[key as "run"]
        return typeof value === "function" ? value.bind(target) : value
      },
    })
  }
}

const limit = (model: Model, tokens: number, milliseconds = unbounded) =>
  Object.assign(model, { burst: { tokens, milliseconds } })

async function said(session: Session, maxTokens: number, options = {}): Promise<Token[]> {
  const all: Token[] = []
  for await (const token of session.tokens(prompt, { maxTokens, seed: 7, ...options })) all.push(token)
  return all
}

for (const kind of tinyKinds) {
  test.serial(`${kind}: bursts of any length have the bits of single steps, and leave the same`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    const count = quick ? 12 : 40
    for (const options of [
      {},
      { temperature: 0, repetitionPenalty: 1.4, frequencyPenalty: 0.7 },
      { topK: 20, topP: 0.9 },
    ]) {
      const outcomes = []
      for (const tokens of quick ? [1, 5] : [1, 2, 3, 7, 64]) {
        limit(model, tokens)
        using session = model.session()
        outcomes.push([await said(session, count, options), await next(session)])
      }
      for (const other of outcomes.slice(1)) t.deepEqual(other, outcomes[0])
    }
  })
}

test.serial("bursts grow up to their limit, stop at maxTokens, and are of one token where time is short", async (t) => {
  await using model = await tinyModel({ sessions: 2 })
  let counts: number[] = []
  changed(model, (steps) => async (inputs, options) => {
    const result = await steps(inputs, options)
    counts.push(result.done)
    return result
  })
  const lengths = async (maxTokens: number, options = {}) => {
    counts = []
    using session = model.session()
    const tokens = await said(session, maxTokens, options)
    return [tokens.length, ...counts]
  }
  limit(model, 7)
  t.deepEqual(await lengths(25), [25, 2, 4, 7, 7, 4])
  t.deepEqual(await lengths(2), [2])
  t.deepEqual(await lengths(3), [3, 2])
  t.deepEqual(await lengths(9, { topLogprobs: 2 }), [9], "logits come back with every token")
  for (const short of [0.001, 0.0001]) {
    limit(model, 7, short)
    t.deepEqual(await lengths(5), [5, 1, 1, 1], "the last one is asked for alone")
  }
  limit(model, 1)
  t.deepEqual(await lengths(5), [5])
})

test.serial("a burst goes no further than what ends a text", async (t) => {
  await using model = limit(await tinyModel({ sessions: 2 }), 64)
  let computed = 0
  using other = model.session()
  const ids = (await said(other, 40)).map(({ id }) => id)
  const at = ids.findIndex((id, i) => i > 8 && ids.indexOf(id) === i)
  changed(model, (steps) => async (inputs, options) => {
    const result = await steps(inputs, options)
    computed += result.done
    return result
  })
  using session = model.session()
  for await (const _ of session.generate(prompt, { maxTokens: 40, seed: 7, stopTokens: [ids[at]!] }));
  t.is(session.length, prompt.length + at)
  t.is(computed, at, "all but the first, which the prompt's run has said")
  t.deepEqual(await next(session), await fresh(model, [...prompt, ...ids.slice(0, at)]))
})

test.serial("logits that are not numbers in mid-burst come after the tokens before them, which are held", async (t) => {
  await using model = limit(await tinyModel({ sessions: 2 }), 7)
  await using plain = await tinyModel({ sessions: 2 })
  for (let bad = 2; bad <= 14; bad++) {
    let seen = 1
    const broken = limit(await tinyModel({ sessions: 2 }), 7)
    changed(broken, (steps) => async (inputs, options) => {
      const { done, outputs } = await steps(inputs, options)
      if (seen < bad && bad <= seen + done) {
        const cut = bad - seen
        const ids = Int32Array.from(outputs.ids!).slice(0, cut)
        ids[cut - 1] = -1
        return { done: cut, outputs: { ...outputs, ids } }
      }
      seen += done
      return { done, outputs }
    })
    using session = broken.session()
    const received: number[] = []
    const generating = async () => {
      for await (const { id } of session.tokens(prompt, { maxTokens: 40, seed: 7 })) received.push(id)
    }
    t.like(await t.throwsAsync(generating), { code: "NOT_FINITE" })
    t.is(received.length, bad - 1)
    t.is(session.length, prompt.length + received.length)
    using restored = await plain.session(await session.save())
    t.deepEqual(await next(restored), await fresh(model, [...prompt, ...received]))
    await broken.dispose()
  }
})

test.serial("an abort while a burst runs, or between its tokens, leaves what was received", async (t) => {
  for (const runs of [1, 2, 3]) {
    const controller = new AbortController()
    await using model = limit(await tinyModel({ sessions: 2 }), 7)
    let count = 0
    changed(model, (steps) => (inputs, options) => {
      const running = steps(inputs, options)
      if (++count === runs) controller.abort()
      return running
    })
    using session = model.session()
    const received: number[] = []
    const generating = async () => {
      const options = { maxTokens: 40, seed: 7, signal: controller.signal }
      for await (const { id } of session.tokens(prompt, options)) received.push(id)
    }
    t.like(await t.throwsAsync(generating), { code: "ABORTED" })
    const before = [0, 1, 3, 7][runs]! // and one more where the burst had ended when the flag was raised
    t.true(received.length === before || received.length === before + 1, `${received.length} after ${runs} bursts`)
    t.is(session.length, prompt.length + received.length)
    t.deepEqual(await next(session), await fresh(model, [...prompt, ...received]))
  }
})

test.serial("sessions that generate at once give way to each other, and each says what it says alone", async (t) => {
  await using model = limit(await tinyModel({ kind: "samba", sessions: 3 }), 64)
  const alone = []
  for (const seed of [1, 2, 3]) {
    using session = model.session()
    alone.push(await said(session, 60, { seed }))
  }
  const together = [1, 2, 3].map(async (seed) => {
    using session = model.session()
    return await said(session, 60, { seed })
  })
  t.deepEqual(await Promise.all(together), alone)
})

test.serial("a session that was left in mid-burst is forked, saved and appended to as any other", async (t) => {
  await using model = limit(await tinyModel({ kind: "linear", sessions: 2 }), 7)
  for (let count = 1; count <= 12; count++) {
    using session = model.session()
    const received: number[] = []
    for await (const { id } of session.tokens(prompt, { seed: 7 })) if (received.push(id) === count) break
    using fork = session.fork()
    using restored = await model.session(await session.save())
    await session.append([1, 2, 3])
    const held = [...prompt, ...received]
    t.deepEqual(await next(session), await fresh(model, [...held, 1, 2, 3]))
    t.deepEqual(await next(fork), await fresh(model, held))
    t.deepEqual(await next(restored), await fresh(model, held))
  }
})
