/**
 * Wherever generation ends, a session holds exactly what its caller received: every offset, every way to end.
 */
import test from "ava"
import type { Model } from "../../lib/generate/model.ts"
import type { Session, Token } from "../../lib/generate/session.ts"
import type { Executable, HostArray } from "../../lib/native.ts"
import { device } from "../device.ts"
import { bytes, fresh, next, noise } from "./compare.ts"
import { type TinyKind, tinyModel } from "./tiny.ts"

const quick = device === "emulated"
/** What the sessions begin with. A ring has 1,088 positions: from the longest on, it turns over while tokens are generated. */
const starts: readonly (readonly [TinyKind, number])[] = [
  ["mamba", 9],
  ["samba", 9],
  ["samba", 1079],
  ["megabyte", 8],
  ["megabyte", 515],
  ["llama", 9],
  ["linear", 9],
].slice(0, quick ? 4 : undefined) as [TinyKind, number][]
const tokens = quick ? 8 : 20

class Consumer extends Error {}

/** Ways to end after `count` tokens: each resolves with the ids that were received. */
const endings: Record<string, (session: Session, count: number) => Promise<number[]>> = {
  break: async (session, count) => {
    const ids: number[] = []
    for await (const { id } of session.tokens(undefined, { seed: 3 })) if (ids.push(id) === count) break
    return ids
  },
  "an abort": async (session, count) => {
    const controller = new AbortController()
    const ids: number[] = []
    try {
      for await (const { id } of session.tokens(undefined, { seed: 3, signal: controller.signal })) {
        if (ids.push(id) === count) controller.abort()
      }
    } catch (error) {
      if ((error as { code: string }).code !== "ABORTED") throw error
    }
    return ids
  },
  "an error of the consumer": async (session, count) => {
    const ids: number[] = []
    try {
      for await (const { id } of session.tokens(undefined, { seed: 3 }))
        if (ids.push(id) === count) throw new Consumer()
    } catch (error) {
      if (!(error instanceof Consumer)) throw error
    }
    return ids
  },
  "the last token": async (session, count) => {
    const ids: number[] = []
    for await (const { id } of session.tokens(undefined, { seed: 3, maxTokens: count })) ids.push(id)
    return ids
  },
  "an error of the device": async (session, count) => {
    const ids: number[] = []
    const generating = session.tokens(undefined, { seed: 3 })
    for (let i = 0; i < count; i++) ids.push(((await generating.next()).value as Token).id)
    failing = true
    try {
      // What was said before it failed is still given.
      for await (const { id } of generating) ids.push(id)
    } catch (error) {
      if (!(error instanceof Consumer)) throw error
    } finally {
      failing = false
    }
    return ids
  },
}

let failing = false
/** Makes the runs of a model fail while `failing` is set. */
function breakable(model: Model): void {
  const step = model.step.bind(model)
  model.step = async (...shape) => {
    const executable = await step(...shape)
    return new Proxy(executable, {
      get: (target, key) =>
        (key === "run" || key === "steps") && failing
          ? () => Promise.reject(new Consumer())
          : typeof target[key as "run"] === "function"
            ? target[key as "run"].bind(target)
            : target[key as "run"],
    })
  }
}

for (const [kind, length] of starts) {
  test.serial(
    `${kind} after ${length} tokens: whatever ends generation at any token, what was received is held`,
    async (t) => {
      await using model = await bursting({ kind, sessions: 3 })
      breakable(model)
      const prompt = noise(length)
      using base = model.session()
      await base.append(prompt)
      for (const [how, end] of Object.entries(endings)) {
        for (let count = 1; count <= tokens; count++) {
          using session = base.fork()
          const received = await end(session, count)
          if (how === "an error of the device") t.true(received.length >= count)
          else t.is(received.length, count)
          t.is(session.length, length + received.length)
          using other = base.fork()
          const expected: Token[] = await next(other, received, 2)
          t.deepEqual(
            (await unpenalised(session)).map(String),
            (await unpenalised(await held(base, received))).map(String),
            `${how} after ${count}`,
          )
          t.is(expected.length, 2)
        }
      }
    },
  )

  test.serial(`${kind} after ${length} tokens: of tokens not passed on, any number is taken back`, async (t) => {
    await using model = await bursting({ kind, sessions: 3 })
    const prompt = noise(length)
    using base = model.session()
    await base.append(prompt)
    for (let count = 1; count <= tokens; count += 3) {
      for (let back = 0; back <= count; back++) {
        using session = base.fork()
        const ids: number[] = []
        const kept = () => Math.max(0, ids.length - (count - back))
        for await (const { id } of session.tokens(undefined, { seed: 3 }, kept)) if (ids.push(id) === count) break
        const received = ids.slice(0, count - back)
        t.is(session.length, length + received.length)
        t.deepEqual(await unpenalised(session), await unpenalised(await held(base, received)), `${back} of ${count}`)
      }
    }
  })
}

/** A model whose sessions run ahead by 1, 2, 4 and then 7 tokens, however slow this machine is: so each test ends at every place in a burst. */
async function bursting(options: Parameters<typeof tinyModel>[0]): Promise<Model> {
  return Object.assign(await tinyModel(options), { burst: { tokens: 7, milliseconds: 1e6 } })
}

/** A session that was given what another was given and received. */
async function held(base: Session, received: readonly number[]): Promise<Session> {
  const session = base.fork()
  await session.append(received)
  return session
}

/** What comes next without penalties: whether a token was given or generated is the one thing that they tell apart. */
async function unpenalised(session: Session): Promise<Token[]> {
  const said: Token[] = []
  for await (const token of session.tokens(undefined, { temperature: 0, maxTokens: 3 })) said.push(token)
  session.dispose()
  return said
}

/** Makes a model say these bytes, whatever it thinks. */
function scripted(model: Model, text: string): void {
  const said = bytes(text)
  const step = model.step.bind(model)
  model.step = async (...shape) => {
    const executable = await step(...shape)
    const run: typeof executable.run = async (inputs, options) => {
      const outputs = await executable.run(inputs, options)
      if ((inputs.picks as Int32Array)[0]! < 0) return outputs
      const at = (inputs.position as Int32Array)[0]! - begins
      return { ...outputs, ids: Int32Array.of(said[at] ?? 46) }
    }
    const steps = stepwise(run)
    return new Proxy(executable, {
      get: (target, key) => (key === "run" ? run : key === "steps" ? steps : target[key as "run"]),
    })
  }
}

/** Several steps by a function for one. */
const stepwise =
  (run: Executable["run"]): Executable["steps"] =>
  async (inputs, { count, feed: [output, input], signal }) => {
    const all: Record<string, HostArray>[] = []
    for (let step = 0; step < count; step++) {
      const own = Object.entries(inputs).map(([name, array]) => {
        const size = array.length / count
        return [name, array.slice(size * step, size * (step + 1))]
      })
      const fed = step === 0 ? {} : { [input]: all[step - 1]![output]! }
      all.push(await run({ ...Object.fromEntries(own), ...fed }, { signal }))
    }
    const [ids, logprobs] = ["ids", "logprobs"].map((name) => all.map((one) => one[name]![0]!))
    return { done: count, outputs: { ids: Int32Array.from(ids!), logprobs: Float32Array.from(logprobs!) } }
  }
let begins = 0

const text = "a€b😀c ñ\u0301 d€€."
for (const kind of ["mamba", "samba", "megabyte"] as const) {
  /** A model that says `text` after "Once", and the position that its first byte is sampled at. */
  async function speaking(): Promise<Model> {
    const model = await bursting({ kind, sessions: 2 })
    begins = kind === "megabyte" ? 5 : 4
    scripted(model, text)
    return model
  }

  test.serial(
    `${kind}: a stop string at any offset, inside characters of several bytes too, is not held`,
    async (t) => {
      await using model = await speaking()
      await using plain = await tinyModel({ kind, sessions: 2 })
      const points = [...text]
      for (let first = 0; first < points.length; first += quick ? 4 : 1) {
        for (const length of [1, 2, 3]) {
          const stop = points.slice(first, first + length).join("")
          const expected = text.slice(0, text.indexOf(stop))
          using session = model.session()
          let received = ""
          for await (const piece of session.generate("Once", { temperature: 0, stop, maxTokens: 40 })) received += piece
          t.is(received, expected)
          const ids = bytes(`Once${expected}`)
          t.is(session.length, ids.length, `${JSON.stringify(stop)}`)
          using restored = await plain.session(await session.save())
          t.deepEqual(await unpenalised(restored), await unpenalised(await given(plain, ids)))
        }
      }
    },
  )

  test.serial(`${kind}: break or an abort at any piece of text leaves what was received`, async (t) => {
    await using model = await speaking()
    await using plain = await tinyModel({ kind, sessions: 2 })
    const pieces = 11
    for (const abort of [false, true]) {
      for (let count = 1; count <= pieces; count++) {
        const controller = new AbortController()
        using session = model.session()
        let [received, seen] = ["", 0]
        try {
          const options = { temperature: 0, stop: "€€!", maxTokens: 40, signal: controller.signal }
          for await (const piece of session.generate("Once", options)) {
            received += piece
            if (++seen < count) continue
            if (!abort) break
            controller.abort()
          }
        } catch (error) {
          t.like(error, { code: "ABORTED" })
        }
        const ids = bytes(`Once${received}`)
        t.is(session.length, ids.length, `${received} after ${count}`)
        using restored = await plain.session(await session.save())
        t.deepEqual(await unpenalised(restored), await unpenalised(await given(plain, ids)))
      }
    }
  })

  test.serial(`${kind}: an abort in any run of a prompt leaves the session as it was`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    const step = model.step.bind(model)
    const prompt = noise(quick ? 700 : 3500)
    for (let runs = 1; runs <= (quick ? 2 : 7); runs++) {
      const controller = new AbortController()
      let count = 0
      model.step = (...shape) => {
        if (++count === runs) controller.abort()
        return step(...shape)
      }
      using session = model.session()
      await session.append(noise(50))
      count = 0
      const generating = session.tokens(prompt, { signal: controller.signal })
      t.like(await t.throwsAsync(generating.next()), { code: "ABORTED" })
      model.step = step
      t.is(session.length, 50)
      t.deepEqual(await next(session), await fresh(model, noise(50)), `aborted in run ${runs}`)
    }
  })
}

async function given(model: Model, ids: readonly number[]): Promise<Session> {
  const session = model.session()
  await session.append(ids)
  return session
}
