/** Models in bf16x3, on emulated tiles. */
import test from "ava"
import { load } from "../../lib/generate/load.ts"
import type { Model } from "../../lib/generate/model.ts"
import { setThreads } from "../../lib/native.ts"
import { fresh, next, noise } from "./compare.ts"
import { tinyKinds, tinyModel } from "./tiny.ts"

process.env.SELSCAN_AMX = "emulate" // read before the first product

for (const kind of tinyKinds) {
  test.serial(`${kind} in bf16x3 says the same however its text is cut, and on any number of threads`, async (t) => {
    const make = () => tinyModel({ kind, precision: "bf16x3", device: "cpu" })
    const ids = noise(90)
    await using model = await make()
    const whole = await fresh(model, ids)
    for (const cut of [1, 7, 64, 89]) {
      using session = model.session()
      await session.append(ids.slice(0, cut))
      t.deepEqual(await next(session, ids.slice(cut)), whole, `cut at ${cut}`)
    }
    await setThreads(3)
    await using other = await make()
    t.deepEqual(await fresh(other, ids), whole)
    await setThreads(0)
    await using exact = await tinyModel({ kind, precision: "f32", device: "cpu" })
    t.notDeepEqual(await fresh(exact, ids), whole)
  })
}

test.serial("rings of a model in bf16x3 are f32, which a snapshot takes to a model in f32", async (t) => {
  const ids = noise(40)
  await using model = await tinyModel({ kind: "samba", precision: "bf16x3", device: "cpu" })
  await using exact = await tinyModel({ kind: "samba", precision: "f32", device: "cpu" })
  using session = model.session()
  await session.append(ids)
  const bytes = await session.save()
  using beside = exact.session()
  await beside.append(ids)
  t.is((await beside.save()).byteLength, bytes.byteLength)
  using restored = await exact.session(bytes)
  t.is((await next(restored)).length, 4)
})

test.serial("the demo's weights of bf16 give nearly the scores of f32 in bf16x3, nearer than in bf16", async (t) => {
  const text = "In the beginning God created the heaven and the earth. "
  const scores = async (model: Model) => (await model.score(text)).logprobs.map((logprob) => logprob ?? 0)
  const of = async (precision: "f32" | "bf16" | "bf16x3") => {
    await using model = await load("demo", { precision, device: "cpu" })
    return await scores(model)
  }
  const exact = await of("f32")
  const apart = (others: readonly number[]) => Math.max(...others.map((logprob, i) => Math.abs(logprob - exact[i]!)))
  const [split, halves] = [apart(await of("bf16x3")), apart(await of("bf16"))]
  t.log(`log-probabilities off by ${split.toExponential(1)} in bf16x3, ${halves.toExponential(1)} in bf16`)
  t.true(split < 1e-3 && split < halves / 20, `${split} against ${halves}`)
})
