/**
 * More sessions than places: states that go to host memory and come back, forks, and who waits for whom.
 */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import test from "ava"
import { Places } from "../../lib/generate/places.ts"
import type { Session, Token } from "../../lib/generate/session.ts"
import { speed } from "../../lib/generate/speed.ts"
import { device } from "../device.ts"
import { bytes, fresh, next, noise } from "./compare.ts"
import { tinyKinds, tinyModel } from "./tiny.ts"

/** Fires after a call that it is given to has begun, and before anything runs. */
function firesSoon(): AbortSignal {
  const controller = new AbortController()
  queueMicrotask(() => controller.abort())
  return controller.signal
}

for (const kind of tinyKinds) {
  const name = (title: string) => `${kind}: ${title}`

  test(name("three sessions on a model with one place, in turn, have the bits of each alone"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    await using roomy = await tinyModel({ kind, sessions: 8 })
    const texts = [noise(70, 1), noise(45, 2), noise(90, 3)]
    const sessions = texts.map(() => model.session())
    for (let at = 0; at < 90; at += 13) {
      for (const [i, text] of texts.entries()) if (at < text.length) await sessions[i]!.append(text.slice(at, at + 13))
    }
    const { spilled } = await model.memory()
    t.true(spilled > 0, "two of them are in host memory")
    const said: Token[][] = sessions.map(() => [])
    for (let round = 0; round < 3; round++) {
      for (const [i, session] of sessions.entries()) said[i]!.push(...(await next(session, undefined, 2)))
    }
    for (const [i, text] of texts.entries()) {
      using alone = roomy.session()
      await alone.append(text)
      const expected: Token[] = []
      for (let round = 0; round < 3; round++) expected.push(...(await next(alone, undefined, 2)))
      t.deepEqual(said[i], expected, `session ${i}`)
    }
    for (const session of sessions) session.dispose()
    t.is((await model.memory()).spilled, 0)
  })

  test(name("a fork goes on with the same bits, and neither knows of the other"), async (t) => {
    for (const sessions of [1, 4]) {
      await using model = await tinyModel({ kind, sessions })
      for (const length of device === "emulated" ? [0, 1, 4, 40] : [0, 1, 2, 3, 4, 7, 40]) {
        const text = noise(length)
        using session = model.session()
        await session.append(text)
        using fork = session.fork()
        using again = fork.fork()
        t.is(fork.length, length)
        await session.append([1, 2, 3])
        t.deepEqual(await next(fork, [65]), await fresh(model, [...text, 65]))
        t.deepEqual(await next(session), await fresh(model, [...text, 1, 2, 3]))
        t.deepEqual(await next(again, [66]), await fresh(model, [...text, 66]))
      }
    }
  })

  test(name("forks keep the penalties of what was generated"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    using session = model.session()
    const first = await next(session, bytes("aaaa"), 12)
    using fork = session.fork()
    t.is(first.length, 12)
    t.deepEqual(await next(fork, undefined, 12), await next(session, undefined, 12))
  })
}

test("memory() tells what sessions have in host memory, and of forks once what they share", async (t) => {
  await using model = await tinyModel({ sessions: 1 })
  using session = model.session()
  await session.append(noise(30))
  t.is((await model.memory()).spilled, 0)
  const forks = [session.fork(), session.fork()]
  await session.append("x") // waits for the copy
  const { spilled } = await model.memory()
  const { states } = await model.memory()
  t.is(spilled, states / model.places.slotCount) // one slot of every state
  for (const fork of forks) fork.dispose()
  t.is((await model.memory()).spilled, 0)
})

test("a session that is disposed while it makes way leaves nothing in host memory", async (t) => {
  await using model = await tinyModel({ sessions: 1 })
  const first = model.session()
  using second = model.session()
  await first.append("abc")
  const appended = second.append("def")
  first.dispose()
  await appended
  t.is((await model.memory()).spilled, 0)
  t.is(first.length, 3) // it is still referenced
  t.deepEqual(await next(second), await fresh(model, bytes("def")))
})

// Emulated, reading the memory takes most of a minute.
const measured = device === "emulated" ? test.skip : test
measured("several sequences are measured on places of their own, which are free afterwards", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 3 })
  const sizes = { prefill: 20, decode: 3, repeats: 1 }
  const { decode } = await speed(model, { ...sizes, batch: 3 })
  t.true(decode.median > 0)
  await t.throwsAsync(speed(model, { ...sizes, batch: 4 }), { code: "SLOTS_EXHAUSTED" })
  const sessions = [1, 2, 3].map(() => model.session())
  const generating = sessions.map((session) => session.tokens("a", { maxTokens: 2 }))
  for (const one of generating) t.false((await one.next()).done)
  for (const one of generating) await one.return(undefined)
})

test("a session in use is refused to others, and one that broke off makes way", async (t) => {
  await using model = await tinyModel({ sessions: 1 })
  using first = model.session()
  using second = model.session()
  await second.append("def")
  const generating = first.tokens("abc", { seed: 1, maxTokens: 9 })
  const { value } = await generating.next()
  const message = /^session: a place on the device is expected, got all 1 in use by sessions that run; end one of them/
  const refusals = [() => second.append("x"), () => model.generate("x").next(), () => model.score("xyz")]
  for (const call of refusals) t.like(await t.throwsAsync(call, { message }), { code: "SLOTS_EXHAUSTED" })
  t.is(second.length, 3)
  await generating.return(undefined)
  t.deepEqual(await next(second), await fresh(model, bytes("def")))
  t.deepEqual(await next(first), await fresh(model, [...bytes("abc"), (value as Token).id]))
})

test("more sessions than places that generate at once end or are refused, and none is lost", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 2 })
  const texts = Array.from({ length: 7 }, (_, i) => noise(10 + i, i))
  const sessions = texts.map(() => model.session())
  for (const [i, session] of sessions.entries()) await session.append(texts[i]!)
  const held = texts.map((text) => [...text])
  for (let round = 0; round < 6; round++) {
    const results = await Promise.allSettled(sessions.map((session) => next(session, undefined, 2)))
    t.true(results.filter(({ status }) => status === "fulfilled").length >= 2)
    for (const [i, result] of results.entries()) {
      if (result.status === "fulfilled") held[i]!.push(...result.value.map(({ id }) => id))
      else t.is(result.reason.code, "SLOTS_EXHAUSTED")
    }
  }
  for (const [i, session] of sessions.entries()) {
    t.is(session.length, held[i]!.length)
    const [token] = await next(session, undefined, 1)
    t.true(Number.isFinite(token!.logprob))
    session.dispose()
  }
})

test("disposing of a session that is in host memory, forked or saved leaves the others whole", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 1 })
  const session = model.session()
  await session.append(noise(30))
  const fork = session.fork()
  const saving = session.save()
  session.dispose()
  t.deepEqual(await next(fork), await fresh(model, noise(30)))
  using restored = await model.session(await saving)
  fork.dispose()
  t.deepEqual(await next(restored), await fresh(model, noise(30)))
})

test("a fork of a session that is generating is refused", async (t) => {
  await using model = await tinyModel()
  using session = model.session()
  const generating = session.tokens("abc")
  await generating.next()
  t.like(
    t.throws(() => session.fork()),
    { code: "SESSION_BUSY" },
  )
  t.like(await t.throwsAsync(session.save()), { code: "SESSION_BUSY" })
  t.like(await t.throwsAsync(session.score("x")), { code: "SESSION_BUSY" })
  await generating.return(undefined)
})

test("what copying for a fork throws comes out of its first use, and out of every later one", async (t) => {
  const model = await tinyModel({ sessions: 1 })
  const session = model.session()
  await session.append("abc")
  const { download } = model.store
  model.store.download = () => Promise.reject(new Error("the copy failed"))
  const fork = session.fork()
  model.store.download = download
  for (let i = 0; i < 2; i++) await t.throwsAsync(fork.append("x"), { message: "the copy failed" })
  t.deepEqual(await next(session), await fresh(model, bytes("abc")))
  await model.dispose()
})

test("a session that cannot be copied to the host stays where it is", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 1 })
  using session = model.session()
  await session.append(noise(30))
  const { download } = model.store
  model.store.download = () => Promise.reject(new Error("the copy failed"))
  using other = model.session()
  await t.throwsAsync(other.append("x"), { message: "the copy failed" })
  model.store.download = download
  t.is(other.length, 0)
  await other.append("x")
  t.deepEqual(await next(session), await fresh(model, noise(30)))
})

test("a session whose state cannot be taken back says so from then on, and the others go on", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 1 })
  using session = model.session()
  await session.append(noise(30))
  const { copySlot } = model.store
  const failing = { signal: firesSoon() }
  let copies = 0
  model.store.copySlot = (from, to) =>
    ++copies > 1 ? Promise.reject(new Error("the copy failed")) : copySlot.call(model.store, from, to)
  await t.throwsAsync(session.append("more", failing), { message: "the copy failed" })
  model.store.copySlot = copySlot
  t.is(session.length, 30)
  for (const call of [() => session.append("x"), () => session.generate("x").next(), () => session.save()]) {
    await t.throwsAsync(call, { message: "the copy failed" })
  }
  t.throws(() => session.fork(), { message: "the copy failed" })
  t.deepEqual(await fresh(model, noise(30)), await fresh(model, noise(30)))
})

test("a session in host memory whose call is aborted while it comes back stays as it was", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 1 })
  using session = model.session()
  using other = model.session()
  await session.append(noise(30))
  await other.append("x")
  t.like(await t.throwsAsync(session.append("more", { signal: firesSoon() })), { code: "ABORTED" })
  t.like(await t.throwsAsync(other.generate("more", { signal: firesSoon() }).next()), { code: "ABORTED" })
  t.like(await t.throwsAsync(session.score("more", { signal: firesSoon() })), { code: "ABORTED" })
  t.deepEqual([session.length, other.length], [30, 1])
  t.deepEqual(await next(session), await fresh(model, noise(30)))
  t.deepEqual(await next(other), await fresh(model, bytes("x")))
})

test("a session that cannot be brought back is in host memory still", async (t) => {
  await using model = await tinyModel({ kind: "samba", sessions: 1 })
  using session = model.session()
  using other = model.session()
  await session.append(noise(30))
  await other.append("x")
  const { upload } = model.store
  model.store.upload = () => Promise.reject(new Error("the copy failed"))
  await t.throwsAsync(session.append("x"), { message: "the copy failed" })
  model.store.upload = upload
  t.is(session.length, 30)
  t.deepEqual(await next(session), await fresh(model, noise(30)))
  t.deepEqual(await next(other), await fresh(model, bytes("x")))
})

test("sessions that are used at once while others make way keep their bits", async (t) => {
  await using model = await tinyModel({ kind: "megabyte", sessions: 3 })
  const sessions = Array.from({ length: 9 }, () => model.session())
  const step = async (session: Session, i: number, round: number) => {
    for (;;) {
      try {
        return await session.append(noise(5, 10 * i + round))
      } catch (error) {
        if ((error as { code: string }).code !== "SLOTS_EXHAUSTED") throw error
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
  }
  await Promise.all(
    sessions.map(async (session, i) => {
      for (let round = 0; round < 6; round++) await step(session, i, round)
    }),
  )
  for (const [i, session] of sessions.entries()) {
    const text = Array.from({ length: 6 }, (_, round) => noise(5, 10 * i + round)).flat()
    t.deepEqual(await next(session), await fresh(model, text), `session ${i}`)
  }
})

test("sessions that were forgotten, in the middle of generating too, give their places back", async (t) => {
  setFlagsFromString("--expose-gc")
  const collect = runInNewContext("gc") as () => void
  await using model = await tinyModel({ sessions: 2 })
  const forget = async () => {
    await model.session().append("abc")
    await model.session().tokens("abc").next()
  }
  await forget()
  await forget().catch(() => {}) // the second place may still be lent
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setImmediate(resolve))
    collect()
  }
  const generating = [model.session(), model.session()].map((session) => session.tokens("abc"))
  for (const one of generating) t.false((await one.next()).done)
  for (const one of generating) await one.return(undefined)
  t.is((await model.memory()).spilled, 0)
})

test("places are lent to the least recently used, and whoever copies is waited for", async (t) => {
  const places = new Places(2, 3)
  t.deepEqual([places.slotCount, places.ringCount], [7, 3])
  const order: string[] = []
  const holder = (name: string, ready = Promise.resolve()) => ({
    spill: async () => {
      order.push(name)
      await ready
    },
  })
  const [a, b, c] = [holder("a"), holder("b"), holder("c")]
  const first = await places.enter(a)
  t.deepEqual(first, { slots: [1, 2, 3], ring: 1 })
  t.deepEqual((await places.enter(b)).ring, 2)
  places.leave(b)
  places.leave(a)
  t.deepEqual((await places.enter(c)).ring, 2)
  t.deepEqual(order, ["b"])
  let copied = () => {}
  places.copying(a, new Promise<void>((resolve) => (copied = resolve)))
  let entered = false
  const waiting = places.enter(b).then((place) => {
    entered = true
    return place
  })
  await new Promise((resolve) => setImmediate(resolve))
  t.false(entered)
  copied()
  t.deepEqual(await waiting, first)
  t.deepEqual(order, ["b", "a"])
  t.like(await t.throwsAsync(places.enter(a)), { code: "SLOTS_EXHAUSTED" })
  places.release(c)
  t.is((await places.enter(a)).ring, 2)
})
