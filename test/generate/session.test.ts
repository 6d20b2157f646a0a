import test from "ava"
import fc from "fast-check"
import type { Model } from "../../lib/generate/model.ts"
import type { Session, Token } from "../../lib/generate/session.ts"
import { lastNorm, type TinyKind, tinyKinds, tinyModel } from "./tiny.ts"

const greedy = { temperature: 0 } as const
const numRuns = 20
const bytes = (text: string) => [...new TextEncoder().encode(text)]
const ids = fc.array(fc.integer({ min: 0, max: 255 }), { minLength: 1, maxLength: 40 })

const models = await Promise.all(
  tinyKinds.map(async (kind) => [kind, await tinyModel({ kind, sessions: 64 })] as const),
)
for (const [kind, model] of models) testSessions(kind, model)

const nothingSaid = (model: Model): [() => Promise<unknown>, string, RegExp] => {
  return [() => model.generate("").next(), "BAD_INPUT", /prompt of at least one token/]
}

/** Every test below, on a tiny model of that kind. */
function testSessions(kind: TinyKind, model: Model): void {
  test.after.always(() => model.dispose())
  const name = (title: string) => `${kind}: ${title}`

  /** The next tokens with the bits of their log-probabilities: equal lists mean equal states. */
  async function next(session: Session, prompt?: readonly number[]): Promise<Token[]> {
    const tokens: Token[] = []
    for await (const token of session.tokens(prompt, { ...greedy, maxTokens: 4 })) tokens.push(token)
    return tokens
  }

  /** What a fresh session that was given these ids at once says next. */
  async function fresh(ids: readonly number[]): Promise<Token[]> {
    using session = model.session()
    return await next(session, ids) // awaited: the session is open until then
  }

  test(name("the same text in any cuts gives the same bits"), async (t) => {
    await fc.assert(
      fc.asyncProperty(ids, fc.array(fc.integer({ min: 1, max: 9 })), async (text, cuts) => {
        using session = model.session()
        let at = 0
        for (const cut of cuts) {
          await session.append(text.slice(at, at + cut))
          at += Math.min(cut, text.length - at)
        }
        const rest = text.slice(at)
        t.deepEqual(await next(session, rest.length > 0 ? rest : undefined), await fresh(text))
      }),
      { numRuns, seed: 1 },
    )
  })

  test(name("a prompt of more than one program's rows gives the bits of its pieces"), async (t) => {
    const text = Array.from({ length: 1100 }, (_, i) => (i * 7919) % 256)
    using session = model.session()
    for (const end of [1, 514, 515, 1027]) await session.append(text.slice(session.length, end))
    t.deepEqual(await next(session, text.slice(1027)), await fresh(text))
  })

  test(name("neighbouring sessions do not change each other's bits"), async (t) => {
    using first = model.session()
    using second = model.session()
    const runs = await Promise.all([next(first, bytes("one")), next(second, bytes("another"))])
    t.deepEqual(runs, [await fresh(bytes("one")), await fresh(bytes("another"))])
  })

  test(name("after a break at any offset a session holds exactly what was received"), async (t) => {
    for (const count of [0, 1, 2, 3, 7, 20]) {
      using session = model.session()
      let text = ""
      if (count > 0) {
        let pieces = 0
        for await (const piece of session.generate("Once", { seed: 3, maxTokens: 60 })) {
          text += piece
          if (++pieces === count) break
        }
      } else await session.append("Once")
      const held = session.length
      t.true(held >= 4 && held <= 64)
      // Random weights emit bytes that are no UTF-8: the session is compared by the bytes it was given and gave.
      const received: number[] = [...bytes("Once")]
      using other = model.session()
      for await (const { id } of other.tokens(bytes("Once"), { seed: 3, maxTokens: held - 4 })) received.push(id)
      t.is(received.length, held)
      t.deepEqual(await next(session), await next(other), `after ${count} pieces, ${JSON.stringify(text)}`)
      t.deepEqual(await fresh(received.slice(0, held)), await fresh(received))
    }
  })

  test(name("tokens that form a stop string are taken back"), async (t) => {
    const all: number[] = []
    using plain = model.session()
    for await (const { id } of plain.tokens("Once upon", { seed: 9, maxTokens: 60, topK: 40 })) all.push(id)
    const ascii = all.findIndex((id, i) => i > 3 && id < 128 && all[i + 1]! < 128)
    t.true(ascii > 0, "the sample holds two ASCII bytes in a row")
    const stop = String.fromCharCode(all[ascii]!, all[ascii + 1]!)
    using session = model.session()
    let text = ""
    for await (const piece of session.generate("Once upon", { seed: 9, maxTokens: 60, topK: 40, stop })) text += piece
    t.false(text.includes(stop))
    const kept = session.length - 9
    t.true(kept <= ascii, "the stop string's bytes are not held")
    t.deepEqual(await next(session), await fresh([...bytes("Once upon"), ...all.slice(0, kept)]))
  })

  test(name("an abort at any offset leaves what was received"), async (t) => {
    for (const after of [1, 2, 5]) {
      const controller = new AbortController()
      using session = model.session()
      const received: number[] = []
      const error = await t.throwsAsync(async () => {
        for await (const { id } of session.tokens("abc", { seed: 1, maxTokens: 50, signal: controller.signal })) {
          received.push(id)
          if (received.length === after) controller.abort()
        }
      })
      t.like(error, { code: "ABORTED" })
      t.deepEqual(await next(session), await fresh([...bytes("abc"), ...received]))
    }
  })

  test(name("an abort before anything ran leaves the session as it was"), async (t) => {
    using session = model.session()
    await session.append("abc")
    const error = await t.throwsAsync(async () => {
      for await (const _ of session.generate("def", { signal: AbortSignal.abort() })) t.fail("nothing is generated")
    })
    t.like(error, { code: "ABORTED" })
    t.is(session.length, 3)
    t.deepEqual(await next(session), await fresh(bytes("abc")))
  })

  test(name("the same seed gives the same text, another seed another"), async (t) => {
    const texts = await Promise.all(
      [4, 4, 5].map(async (seed) => {
        let text = ""
        for await (const piece of model.generate("x", { seed, maxTokens: 40 })) text += piece
        return text
      }),
    )
    t.is(texts[0], texts[1])
    t.not(texts[0], texts[2])
  })

  test(name("bytes on request are the tokens themselves"), async (t) => {
    const received: number[] = []
    for await (const byte of model.generateBytes("x", { seed: 4, maxTokens: 40 })) received.push(byte)
    t.is(received.length, 40)
    t.true(received.every((byte) => Number.isInteger(byte) && byte >= 0 && byte < 256))
  })

  test(name("two generates on one session are refused, and the first goes on"), async (t) => {
    using session = model.session()
    const first = session.tokens("abc", { maxTokens: 3, seed: 1 })
    await first.next()
    const error = await t.throwsAsync(() => session.tokens("x").next())
    t.like(error, { code: "SESSION_BUSY" })
    t.like(await t.throwsAsync(() => session.append("x")), { code: "SESSION_BUSY" })
    t.false((await first.next()).done)
    await first.return(undefined)
    await session.append("now it is free")
  })

  test(name("prompts that say nothing or nonsense are refused in one sentence"), async (t) => {
    const cases: [() => Promise<unknown>, string, RegExp][] = [
      // A model whose sequences begin with a row of no token can begin a text by itself.
      ...(kind === "megabyte" ? [] : [nothingSaid(model)]),
      [() => model.generate([256]).next(), "BAD_INPUT", /0 to 255, got 256/],
      [() => model.generate([1, -1]).next(), "BAD_INPUT", /got -1 at index 1/],
      [() => model.generate([0.5]).next(), "BAD_INPUT", /got 0.5/],
      [() => model.generate(7 as unknown as string).next(), "BAD_INPUT", /a string/],
      [() => model.generate("x", { temprature: 1 } as object).next(), "BAD_OPTION", /did you mean temperature\?/],
      [() => model.generate("x", { temperature: -1 }).next(), "BAD_OPTION", /temperature/],
      [() => model.generate("x", { temperature: Number.NaN }).next(), "BAD_OPTION", /temperature/],
      [() => model.generate("x", { topP: 0 }).next(), "BAD_OPTION", /topP/],
      [() => model.generate("x", { topK: 1.5 }).next(), "BAD_OPTION", /topK/],
      [() => model.generate("x", { seed: -1 }).next(), "BAD_OPTION", /seed/],
      [() => model.generate("x", { maxTokens: -1 }).next(), "BAD_OPTION", /maxTokens/],
      [() => model.generate("x", { stop: [""] }).next(), "BAD_OPTION", /stop/],
    ]
    for (const [call, code, message] of cases) t.like(await t.throwsAsync(call, { message }), { code })
  })

  test(name("maxTokens 0 generates nothing but takes the prompt"), async (t) => {
    using session = model.session()
    for await (const _ of session.generate("abc", { maxTokens: 0 })) t.fail("nothing is generated")
    t.is(session.length, 3)
    t.deepEqual(await next(session), await fresh(bytes("abc")))
  })

  test(name("a session that was disposed of says so, and its place is another's"), async (t) => {
    await using small = await tinyModel({ kind, sessions: 1 })
    const session = small.session()
    await session.append("abc")
    session.dispose()
    session.dispose()
    t.like(await t.throwsAsync(() => session.append("x")), { code: "DISPOSED" })
    t.like(await t.throwsAsync(() => session.save()), { code: "DISPOSED" })
    t.like(
      t.throws(() => session.fork()),
      { code: "DISPOSED" },
    )
    using other = small.session()
    t.deepEqual(await next(other, bytes("abc")), await fresh(bytes("abc")))
  })

  test(name("a disposed model says so, whatever is asked"), async (t) => {
    const gone = await tinyModel({ kind })
    const session = gone.session()
    await session.append("abc")
    const running = session.append("x".repeat(3000))
    await gone.dispose()
    await gone.dispose()
    const outcome = await running.then(
      () => "done",
      (error: { code: string }) => error.code,
    )
    t.true(["done", "DISPOSED"].includes(outcome), outcome)
    t.like(
      t.throws(() => gone.session()),
      { code: "DISPOSED" },
    )
    t.like(await t.throwsAsync(() => session.append("more")), { code: "DISPOSED" })
    t.like(await t.throwsAsync(session.save()), { code: "DISPOSED" })
    t.like(await t.throwsAsync(session.score("x")), { code: "DISPOSED" })
    t.like(await t.throwsAsync(gone.session(new Uint8Array(8))), { code: "DISPOSED" })
    t.like(
      t.throws(() => session.fork()),
      { code: "DISPOSED" },
    )
    t.like(await t.throwsAsync(() => gone.generate("x").next()), { code: "DISPOSED" })
  })

  test(name("weights that are not numbers end generation with an error"), async (t) => {
    await using broken = await tinyModel({ kind })
    const name = lastNorm(kind)
    await broken.store.upload("weight", { name, dtype: "f32", shape: [16] }, new Float32Array(16).fill(Number.NaN))
    t.like(await t.throwsAsync(() => broken.generate("x").next()), { code: "NOT_FINITE" })
    t.like(await t.throwsAsync(() => broken.bitsPerByte("some text")), { code: "NOT_FINITE" })
  })

  test(name("the frequency penalty keeps a token from coming again and again"), async (t) => {
    const count = async (frequencyPenalty: number) => {
      const seen = new Map<number, number>()
      for await (const id of model.generateBytes("aaaa", { ...greedy, frequencyPenalty, maxTokens: 60 })) {
        seen.set(id, (seen.get(id) ?? 0) + 1)
      }
      return Math.max(...seen.values())
    }
    t.true((await count(100)) < (await count(0)))
  })

  /** Tokens of a seeded sample, and the index of the first ASCII one from the fourth on. */
  async function sampled(): Promise<{ all: number[]; ascii: number }> {
    using plain = model.session()
    const all: number[] = []
    for await (const { id } of plain.tokens("Once upon", { seed: 9, maxTokens: 60, topK: 40 })) all.push(id)
    return { all, ascii: all.findIndex((id, i) => i > 3 && id < 128) }
  }

  test(name("text that might have begun a stop string is delivered at the end, and held"), async (t) => {
    const { all, ascii } = await sampled()
    const stop = `${String.fromCharCode(all[ascii]!)}, but never this`
    using session = model.session()
    let text = ""
    const options = { seed: 9, maxTokens: ascii + 1, topK: 40, stop }
    for await (const piece of session.generate("Once upon", options)) text += piece
    t.true(text.endsWith(stop[0]!))
    t.is(session.length, 9 + ascii + 1)
    t.deepEqual(await next(session), await fresh([...bytes("Once upon"), ...all.slice(0, ascii + 1)]))
  })

  test(name("after more tokens than one program takes, what was not received is still taken back"), async (t) => {
    using session = model.session()
    const received: number[] = []
    const taken = session.tokens("abc", { seed: 1, maxTokens: 1100 }, () => (received.length > 1095 ? 3 : 0))
    for await (const { id } of taken) {
      received.push(id)
      if (received.length === 1097) break
    }
    t.is(session.length, 3 + 1094)
    t.deepEqual(await next(session), await fresh([...bytes("abc"), ...received.slice(0, 1094)]))
  })

  test(name("an append of many runs that is aborted leaves the session as it was"), async (t) => {
    const before = Array.from({ length: 50 }, (_, i) => (i * 31) % 256)
    for (const runs of [1, 2, 3, 6]) {
      const controller = new AbortController()
      await using other = await tinyModel({ kind })
      const step = other.step.bind(other)
      using session = other.session()
      await session.append(before)
      let count = 0
      other.step = (...shape) => {
        if (++count === runs) controller.abort()
        return step(...shape)
      }
      const long = new Uint8Array(3500).map((_, i) => (i * i) % 251)
      t.like(await t.throwsAsync(session.append(long, controller)), { code: "ABORTED" })
      t.is(session.length, before.length)
      t.deepEqual(await next(session), await fresh(before), `aborted in run ${runs}`)
    }
  })

  test(name("an answer of which nothing was received is taken back, however long it is"), async (t) => {
    using session = model.session()
    await session.append("a prompt, received")
    let count = 0
    for await (const _ of session.tokens(undefined, { seed: 2, maxTokens: 1600 }, () => count))
      if (++count === 1500) break
    t.is(session.length, 18)
    t.deepEqual(await next(session), await fresh(bytes("a prompt, received")))
  })

  test(name("when nothing of the answer was received, the session holds the prompt and can go on"), async (t) => {
    const penalised = { ...greedy, maxTokens: 8, repetitionPenalty: 5 }
    const ids = async (session: Session, prompt?: string) => {
      const list: number[] = []
      for await (const { id } of session.tokens(prompt, penalised)) list.push(id)
      return list
    }
    for (const prompt of ["a", "Once upon a time"]) {
      using session = model.session()
      let count = 0
      for await (const _ of session.tokens(prompt, { seed: 4 }, () => count)) if (++count === 3) break
      t.is(session.length, prompt.length)
      using other = model.session()
      t.deepEqual(await ids(session), await ids(other, prompt))
    }
  })

  test(name("logits that are not numbers leave a session as it was"), async (t) => {
    await using broken = await tinyModel({ kind })
    using session = broken.session()
    await session.append("abc")
    const slot = { name: lastNorm(kind), dtype: "f32", shape: [16] } as const
    const good = new Float32Array((await broken.store.download("weight", slot.name)).buffer)
    await broken.store.upload("weight", slot, new Float32Array(16).fill(Number.NaN))
    t.like(await t.throwsAsync(() => session.generate("def").next()), { code: "NOT_FINITE" })
    t.is(session.length, 3)
    await broken.store.upload("weight", slot, good)
    t.deepEqual(await next(session), await fresh(bytes("abc")))
  })

  test(name("a signal or a stop that is none is refused"), async (t) => {
    t.like(await t.throwsAsync(() => model.generate("x", { signal: {} as AbortSignal }).next()), { code: "BAD_OPTION" })
    t.like(await t.throwsAsync(() => model.generate("x", { stop: 5 as unknown as string }).next()), {
      code: "BAD_OPTION",
    })
  })

  test(name("bits per byte of a model whose tokens are not bytes are refused"), async (t) => {
    const { Model } = await import("../../lib/generate/model.ts")
    const { modelConfig } = await import("../../lib/models/config.ts")
    const { PatternModel } = await import("../../lib/models/pattern-model.ts")
    await using other = new Model(new PatternModel(modelConfig({ dim: 16, layers: 1, vocab: 64 })), "f32")
    t.like(await t.throwsAsync(() => other.bitsPerByte([1, 2, 3])), { code: "BAD_INPUT" })
  })
}

test("a session whose model attends to everything ends at contextMax, and holds what it has", async (t) => {
  await using small = await tinyModel({ kind: "llama", contextMax: 64 })
  using session = small.session()
  await session.append(new Uint8Array(60))
  const far = { message: /got 60 and 5000 more/ }
  t.like(await t.throwsAsync(session.append(new Uint8Array(5000)), far), { code: "BAD_INPUT" })
  const message = /holds at most contextMax = 64 tokens, got 60 and 5 more; open another/
  t.like(await t.throwsAsync(session.append(new Uint8Array(5)), { message }), { code: "BAD_INPUT" })
  t.like(await t.throwsAsync(session.generate(new Uint8Array(4)).next(), { message }), { code: "BAD_INPUT" })
  t.is(session.length, 60)
  const received: number[] = []
  const error = await t.throwsAsync(async () => {
    for await (const { id } of session.tokens(undefined, { maxTokens: 10, seed: 1 })) received.push(id)
  })
  t.like(error, { code: "BAD_INPUT" })
  t.is(received.length, 4)
  t.is(session.length, 64)
})

test("a text is judged up to contextMax, and beyond it with a context alone", async (t) => {
  // 100 positions lie in a ring of 128, which must not let more of them through.
  await using small = await tinyModel({ kind: "llama", contextMax: 100 })
  const text = (length: number) => Uint8Array.from({ length }, (_, i) => (i * i) % 251)
  await using large = await tinyModel({ kind: "llama" })
  t.is(await small.bitsPerByte(text(101)), await large.bitsPerByte(text(101)))
  for (const length of [102, 129, 130, 1500]) {
    const message = `bitsPerByte: a text of at most contextMax + 1 = 101 bytes is expected without a context, got ${length}; give a context of at most 100, or load the model with a larger contextMax`
    t.like(await t.throwsAsync(small.bitsPerByte(text(length)), { message }), { code: "BAD_INPUT" })
  }
  t.is(await small.bitsPerByte(text(1500), { context: 100 }), await large.bitsPerByte(text(1500), { context: 100 }))
  t.like(await t.throwsAsync(small.bitsPerByte(text(9), { context: 101 })), { code: "BAD_OPTION" })
})
