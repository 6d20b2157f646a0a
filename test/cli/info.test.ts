import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { convert } from "../../lib/checkpoint/convert.ts"
import { modelFacts } from "../../lib/cli/info-facts.ts"
import { load } from "../../lib/generate/load.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { devices } from "../../lib/native.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { tinyModel } from "../generate/tiny.ts"
import { selscan } from "./run.ts"

const folder = temporaryFolder()

test("info says which addon and device are used, and what there is beside them", async (t) => {
  const { code, out, err } = await selscan(["info", "--json", "--threads", "1"])
  t.is(code, 0, err)
  const info = JSON.parse(out)
  t.is(info.node, process.version)
  t.regex(info.platform, new RegExp(`^${process.platform}-${process.arch}`))
  t.is(info.addon.candidates.filter(({ state }: { state: string }) => state === "in use").length, 1)
  t.is(info.devices.find(({ name }: { name: string }) => name === "cpu").threads, 1)
  t.deepEqual(
    info.devices.map(({ name }: { name: string }) => name),
    devices().map(({ name }) => name),
  )
  const { missing } = devices().find(({ name }) => name === "cuda") ?? {}
  if (missing === undefined) t.like(info.device, { wanted: "auto", chosen: "cuda" })
  else t.deepEqual(info.device, { wanted: "auto", chosen: "cpu", why: `not cuda: ${missing}` })
  t.is(info.model, undefined)
})

test("a missing addon is told of, with what helps, and is no failure", async (t) => {
  const env = { ...process.env, SELSCAN_ADDON: join(folder, "absent.node") }
  const [json, text, other] = await Promise.all([
    selscan(["info", "--json", "--model", "demo"], { env }),
    selscan(["info", "--device", "cuda", "--threads", "2"], { env }),
    selscan(["generate", "x"], { env }),
  ])
  t.deepEqual([json.code, text.code, other.code], [0, 0, 1])
  const { addon, device, devices: none, model } = JSON.parse(json.out)
  t.is(addon.path, undefined)
  t.is(other.err, `selscan: ${addon.missing}\n`)
  t.like(addon.candidates[0], { name: "SELSCAN_ADDON", state: "refused" })
  t.deepEqual(device, { wanted: "auto", why: "there is no addon" })
  t.deepEqual(none, [])
  t.is(model.family, "Mamba")
  t.true(text.out.includes(addon.missing))
})

test("a device that cannot be had is why there is none, and one that is no name is refused", async (t) => {
  const { missing } = devices().find(({ name }) => name === "cuda") ?? {}
  const [cuda, cpu, none] = await Promise.all(
    ["cuda", "cpu", "gpu"].map((device) => selscan(["info", "--json", "--device", device])),
  )
  if (missing !== undefined)
    t.deepEqual(JSON.parse(cuda!.out).device, { wanted: "cuda", why: `device cuda: ${missing}` })
  t.like(JSON.parse(cpu!.out).device, { wanted: "cpu", chosen: "cpu" })
  t.is(none!.code, 2)
  t.regex(none!.err, /^selscan: device: one of auto, /)
})

for (const name of ["demo", "demo-samba"]) {
  test(`what info says of ${name} is what it is once loaded`, async (t) => {
    const facts = await modelFacts(name)
    await using model = await load(name, { device: "cpu" })
    const shapes = [...allParameters(model.network).values()].map(({ shape }) => shape.reduce((a, b) => a * b, 1))
    t.is(
      facts.parameters,
      shapes.reduce((a, b) => a + b, 0),
    )
    t.like(facts, { text: "bytes", chat: false, vocab: 256, configFile: "config.json", dtypes: ["BF16", "F32"] })
    using session = model.session()
    await session.append("a".repeat(600)) // longer than the window
    // All of the snapshot but its header, of which the demos' are under a kilobyte or two.
    const { length } = await session.save()
    t.true(facts.stateBytes <= length && length <= facts.stateBytes + 8192, `${facts.stateBytes} of ${length}`)
  })
}

for (const [kind, dtype] of [
  ["samba", "f32"],
  ["llama", "bf16"],
] as const) {
  test(`a session of a ${kind} in 8 bits has the size of its rings, in ${dtype} as the matrices beside them`, async (t) => {
    const [wide, eight] = [join(folder, kind), join(folder, `${kind}-int8`)]
    await using tiny = await tinyModel({ device: "cpu", kind, contextMax: 64 })
    await tiny.save(wide, { dtype })
    await convert(wide, eight, { weights: "int8" })
    const facts = await modelFacts(eight)
    t.true(facts.dtypes.includes("BF16"), "the scales are")
    t.is(facts.stateBytes, (await modelFacts(wide)).stateBytes)
    await using model = await load(eight, { device: "cpu" })
    t.is(model.precision, dtype)
  })
}

test("a folder that is no model is an error of info too", async (t) => {
  const absent = await selscan(["info", "--model", join(folder, "absent")])
  t.is(absent.code, 1)
  t.regex(absent.err, /config\.json/)
  writeFileSync(join(folder, "config.json"), "{")
  const broken = await selscan(["info", "--model", folder])
  t.is(broken.code, 1)
  t.is(broken.err.trim().split("\n").length, 1)
})

test("the models of the Hub's cache are listed, where there is one", async (t) => {
  const env = { ...process.env, HF_HUB_CACHE: join(folder, "hub") }
  const none = await selscan(["info", "--json"], { env })
  t.deepEqual(JSON.parse(none.out).hub, { path: join(folder, "hub"), models: [] }, none.err)
  const [model, commit] = [join(folder, "hub", "models--owner--name"), "a".repeat(40)]
  for (const path of ["blobs", "refs", `snapshots/${commit}`]) mkdirSync(join(model, path), { recursive: true })
  writeFileSync(join(model, "blobs", "b".repeat(40)), "{}")
  writeFileSync(join(model, "refs", "main"), commit)
  symlinkSync(`../../blobs/${"b".repeat(40)}`, join(model, "snapshots", commit, "config.json"))
  const { out, err } = await selscan(["info", "--json"], { env })
  t.deepEqual(JSON.parse(out).hub.models, [{ name: "owner/name", bytes: 2 }], err)
})
