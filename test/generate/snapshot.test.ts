/**
 * Snapshots: the same bits elsewhere, and one clear error for whatever is none.
 */
import { execFileSync } from "node:child_process"
import { mkdtempSync, writeFileSync } from "node:fs"
import { readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"
import { SelscanError } from "../../lib/errors.ts"
import { nameOf } from "../../lib/generate/fingerprint.ts"
import { load } from "../../lib/generate/load.ts"
import type { Model } from "../../lib/generate/model.ts"
import type { Session } from "../../lib/generate/session.ts"
import { device } from "../device.ts"
import { bytes, fresh, next, noise } from "./compare.ts"
import { resealed, sealed } from "./sealed.ts"
import { tinyKinds, tinyModel } from "./tiny.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-snapshot-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

async function saved(model: Model, text: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
  using session = model.session()
  await session.append(text)
  return await session.save()
}

for (const kind of tinyKinds) {
  const name = (title: string) => `${kind}: ${title}`

  test(name("a session that was saved goes on with the same bits in another model of the same weights"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    await using other = await tinyModel({ kind, sessions: 5 }) // its rings and slots are as many as it likes
    for (const length of [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 75]) {
      const text = noise(length)
      using restored = await other.session(await saved(model, text))
      t.is(restored.length, length)
      t.deepEqual(await next(restored, [65]), await fresh(model, [...text, 65]), `${length} tokens`)
    }
  })

  test(name("a snapshot has the penalties of what was generated, and goes on where the seed was"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 2 })
    using session = model.session()
    const before = await next(session, bytes("aaaa"), 12)
    t.is(before.length, 12)
    using restored = await model.session(await session.save())
    t.deepEqual(await next(restored, undefined, 12), await next(session, undefined, 12))
    const seeded = async (one: Session) => {
      const ids: number[] = []
      for await (const { id } of one.tokens(undefined, { seed: 7, maxTokens: 20 })) ids.push(id)
      return ids
    }
    t.deepEqual(await seeded(restored), await seeded(session))
    t.deepEqual(await restored.save(), await session.save())
  })

  test(
    name("a session saves the same bytes from host memory as from the device, whoever had its place before"),
    async (t) => {
      await using model = await tinyModel({ kind, sessions: 1 })
      const used = model.session()
      await used.append(noise(200, 9))
      used.dispose()
      using session = model.session()
      await session.append(noise(25))
      const onDevice = await session.save()
      using other = model.session()
      await other.append("x")
      t.deepEqual(await session.save(), onDevice)
      await using clean = await tinyModel({ kind, sessions: 1 })
      t.deepEqual(await saved(clean, noise(25)), onDevice)
    },
  )

  test(name("every cut and every damaged byte of a snapshot is refused, and no place is taken"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    const snapshot = await saved(model, noise(20))
    const refused = async (given: Uint8Array, what: string) => {
      const error = await model.session(given).then(
        () => undefined,
        (error: unknown) => error,
      )
      const code = error instanceof SelscanError ? error.code : "none"
      if (code !== "BAD_SNAPSHOT") t.fail(`${what}: ${error}`)
    }
    const every = Math.max(1, Math.floor(snapshot.length / Number(process.env.SELSCAN_FUZZ ?? 700)))
    for (let at = 0; at < snapshot.length; at += at < 300 ? 1 : every) {
      await refused(snapshot.subarray(0, at), `cut at ${at}`)
      const damaged = snapshot.slice()
      damaged[at]! ^= 1 << (at % 8)
      await refused(damaged, `byte ${at}`)
    }
    await refused(Uint8Array.from([...snapshot, 0]), "one byte more")
    t.deepEqual(await next(await model.session(snapshot)), await fresh(await tinyModel({ kind }), noise(20)))
  })

  test(name("a snapshot whose checksum fits is believed in nothing else"), async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    const snapshot = await saved(model, noise(20))
    // biome-ignore lint/suspicious/noExplicitAny: what is there is to be made wrong
    const changes: ((header: any) => void)[] = [
      (header) => delete header.rows,
      (header) => (header.rows = -1),
      (header) => (header.rows = 1.5),
      (header) => (header.rows = 0),
      (header) => (header.rows = 2 ** 40),
      (header) => (header.before = [...header.before, 1]),
      (header) => (header.before = "none"),
      (header) => (header.pending = []),
      (header) => (header.pending = [256]),
      (header) => (header.pending = [-1]),
      (header) => (header.pending = [null]),
      (header) => (header.fingerprint = 5),
      (header) => (header.fingerprint = "0".repeat(64)),
      (header) => (header.model = null),
      (header) => (header.values = {}),
      (header) => (header.values = []),
      (header) => header.values.pop(),
      (header) => header.values.reverse(),
      (header) => header.values.push(["more", "f32", 4]),
      (header) => (header.values[0][0] = "constructor"),
      (header) => (header.values[0][1] = "constructor"),
      (header) => (header.values[0][1] = "f64"),
      (header) => (header.values[0][1] = "f16"),
      (header) => (header.values[0][2] += 4),
      (header) => (header.values[0][2] = -4),
      (header) => (header.values[0][2] = 0),
      (header) => header.values.unshift(header.values.pop()),
      (header) => (header.values[0] = null),
    ]
    for (const change of changes) {
      const given = resealed(snapshot, change)
      t.like(await t.throwsAsync(model.session(given), undefined, String(change)), { code: "BAD_SNAPSHOT" })
    }
    for (const header of ["[]", "null", "5", "{", "", '"x"', "[".repeat(1e5)]) {
      t.like(await t.throwsAsync(model.session(sealed(snapshot, header))), { code: "BAD_SNAPSHOT" })
      const beyond = sealed(snapshot, header, 2 ** 32 - 1)
      t.like(await t.throwsAsync(model.session(beyond)), { code: "BAD_SNAPSHOT" })
    }
    using restored = await model.session(resealed(snapshot, () => {}))
    t.is(restored.length, 20)
  })
}

test("a snapshot of another model is refused by name", async (t) => {
  await using samba = await tinyModel({ kind: "samba" })
  await using mamba = await tinyModel()
  const snapshot = await saved(samba, noise(20))
  const message =
    /^session: a snapshot of the model "mamba of 2 blocks of 16" \(weights [0-9a-f]{12}\) is expected, got one of "mamba-swiglu-attention of 4 blocks of 16" \(weights [0-9a-f]{12}\); load that$/
  const error = await t.throwsAsync(mamba.session(snapshot), { message })
  t.like(error, { code: "BAD_SNAPSHOT", details: { expected: mamba.name, got: samba.name } })
  mamba.name = "my/mamba"
  await t.throwsAsync(mamba.session(snapshot), { message: /a snapshot of the model "my\/mamba"/ })
})

test("a model is called as it was loaded, of a path by its last part, and else by its blocks", async (t) => {
  t.is(nameOf("state-spaces/mamba-130m-hf"), "state-spaces/mamba-130m-hf")
  t.is(nameOf("/home/somebody/models/mine/"), "mine")
  t.is(nameOf("./runs/a"), "a")
  t.is(nameOf("../b"), "b")
  await using megabyte = await tinyModel({ kind: "megabyte" })
  t.is(megabyte.name, "megabyte of 2 + 2 blocks of 20 and 16")
})

test("one weight that differs in one bit makes another model", async (t) => {
  await using model = await tinyModel()
  await using other = await tinyModel()
  t.is(await other.fingerprint(), await model.fingerprint())
  await using changed = await tinyModel()
  const slot = { name: "backbone.layers.1.mixer.D", dtype: "f32", shape: [32] } as const
  const weight = await changed.store.download("weight", slot.name)
  weight[0]! ^= 1
  await changed.store.upload("weight", slot, weight)
  t.not(await changed.fingerprint(), await model.fingerprint())
  t.like(await t.throwsAsync(changed.session(await saved(model, [1, 2]))), { code: "BAD_SNAPSHOT" })
})

test("a snapshot goes where contextMax is another, but not where it does not fit", async (t) => {
  for (const kind of ["llama", "samba"] as const) {
    await using model = await tinyModel({ kind, contextMax: 4096 })
    await using small = await tinyModel({ kind, contextMax: 64 })
    using restored = await small.session(await saved(model, noise(60)))
    t.deepEqual(await next(restored), await fresh(model, noise(60)))
    const snapshot = await saved(model, noise(65))
    if (kind === "samba") (await small.session(snapshot)).dispose()
    else {
      const message =
        /at most contextMax = 64 tokens is expected, got one of 65; load the model with a larger contextMax/
      t.like(await t.throwsAsync(small.session(snapshot), { message }), { code: "BAD_INPUT" })
    }
  }
})

test("what are no bytes is refused, and bytes that change afterwards do not matter", async (t) => {
  await using model = await tinyModel()
  for (const given of [undefined, null, "text", [1], new ArrayBuffer(8), new Float32Array(8)]) {
    t.like(await t.throwsAsync(model.session(given as unknown as Uint8Array)), { code: "BAD_INPUT" })
  }
  const snapshot = await saved(model, noise(20))
  const restoring = model.session(snapshot)
  snapshot.fill(0)
  t.deepEqual(await next(await restoring), await fresh(model, noise(20)))
})

test("a snapshot goes between products in f32 and in bf16, and from bf16 there and back with the same bits", async (t) => {
  for (const kind of tinyKinds) {
    await using exact = await tinyModel({ kind, precision: "f32" })
    await using rounded = await tinyModel({ kind, precision: "bf16" })
    for (const [from, to] of [
      [exact, rounded],
      [rounded, exact],
    ] as const) {
      using restored = await to.session(await saved(from, noise(40)))
      const there = await restored.save()
      const [token] = await next(restored, [65], 1)
      const [expected] = await fresh(to, [...noise(40), 65], 1)
      t.true(Math.abs(token!.logprob - expected!.logprob) < 0.3, `${kind}: ${token!.logprob} and ${expected!.logprob}`)
      if (from === exact) continue
      using back = await rounded.session(there)
      t.deepEqual(await next(back), await fresh(rounded, noise(40)))
    }
  }
})

test("a model whose file is bf16 is the same model in either precision, and another than in f32", async (t) => {
  await using made = await tinyModel({ kind: "samba" })
  const path = join(folder, "halves")
  await made.save(path, { dtype: "bf16" })
  await using halves = await load(path, { device })
  await using products = await load(path, { device, precision: "f32" })
  t.deepEqual([halves.name, halves.precision, products.precision], ["halves", "bf16", "f32"])
  t.is(await halves.fingerprint(), await products.fingerprint())
  t.not(await halves.fingerprint(), await made.fingerprint())
  using restored = await products.session(await saved(halves, noise(20)))
  t.is(restored.length, 20)
  t.is((await next(restored)).length, 4)
})

test("a snapshot of the cpu goes on elsewhere, and one from there on the cpu", async (t) => {
  for (const kind of tinyKinds) {
    await using cpu = await tinyModel({ kind, device: "cpu" })
    await using other = await tinyModel({ kind, device })
    for (const [from, to] of [
      [cpu, other],
      [other, cpu],
    ] as const) {
      using restored = await to.session(await saved(from, noise(30)))
      const tokens = await next(restored, [65])
      const expected = await fresh(to, [...noise(30), 65])
      for (const [i, { id, logprob }] of tokens.entries()) {
        t.is(id, expected[i]!.id)
        t.true(Math.abs(logprob - expected[i]!.logprob) < 1e-4)
      }
    }
  }
})

test("another process goes on with the same bits", async (t) => {
  await using demo = await load("demo", { device })
  t.is(demo.name, "demo")
  using session = demo.session()
  await session.append("It is a truth universally acknowledged, that ")
  const path = join(folder, "session.bin")
  writeFileSync(path, await session.save())
  t.true((await readFile(path)).length < 700_000, "a snapshot is as large as the state")
  const script = `
    import { readFileSync } from "node:fs"
    import { load } from "${fileURLToPath(new URL("../../lib/index.ts", import.meta.url))}"
    const model = await load("demo", { device: "${device}" })
    const session = await model.session(readFileSync(${JSON.stringify(path)}))
    const tokens = []
    for await (const token of session.tokens(undefined, { seed: 5, maxTokens: 12 })) tokens.push(token)
    console.log(JSON.stringify(tokens))`
  const told = execFileSync(process.execPath, ["--import=tsx", "--input-type=module", "-e", script], {
    encoding: "utf8",
  })
  const tokens = []
  for await (const token of session.tokens(undefined, { seed: 5, maxTokens: 12 })) tokens.push(token)
  t.deepEqual(JSON.parse(told), tokens)
})
