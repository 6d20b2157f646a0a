import { createHash } from "node:crypto"
import { mkdtempSync, writeFileSync } from "node:fs"
import { mkdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import type { Naming } from "../../lib/checkpoint/family.ts"
import { openSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { load } from "../../lib/generate/load.ts"
import { Model } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { Random } from "../../lib/layers/random.ts"
import { type ModelConfig, type ModelSize, modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { device } from "../device.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-round-trip-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))
let made = 0
const fresh = () => join(folder, String(made++))

/** A model whose every weight is another number. */
async function randomModel(size: ModelSize): Promise<Model> {
  const network = new PatternModel(modelConfig(size))
  const model = new Model(network, "f32", { device })
  let stream = 0
  for (const [name, { shape }] of allParameters(network)) {
    const random = new Random(7, stream++)
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.uniform() / 4 - 0.125)
    await model.store.upload("weight", { name, dtype: "f32", shape }, values)
  }
  return model
}

/** The hash of each weight's bits. */
async function weightsOf(model: Model): Promise<Map<string, string>> {
  const weights = new Map<string, string>()
  for (const name of allParameters(model.network).keys()) {
    const bytes = await model.store.download("weight", name)
    weights.set(name, createHash("sha256").update(bytes).digest("hex"))
  }
  return weights
}

const small = { dim: 32, vocab: 48, heads: 4, kvHeads: 2, mlp: 40, window: 5 }
const models: Readonly<Record<string, [ModelSize, readonly Naming[]]>> = {
  Mamba: [{ ...small, layers: 2, state: 4 }, ["original", "transformers", "selscan"]],
  "Mamba with biases": [
    { ...small, layers: 2, projBias: true, convBias: false, tied: false },
    ["original", "transformers", "selscan"],
  ],
  SAMBA: [{ ...small, layers: 4, pattern: sambaPattern }, ["samba", "selscan"]],
  "SAMBA with short convolutions": [
    { ...small, layers: 4, pattern: sambaPattern, shortConv: 4, rope: false, tied: false },
    ["samba", "selscan"],
  ],
  "Mamba-SWA-MLP": [{ ...small, layers: 3, pattern: ["mamba", "sliding", "swiglu"] }, ["samba", "selscan"]],
  "MLP2-SWA-MLP": [
    { ...small, layers: 4, pattern: [{ block: "swiglu", mlp: 64 }, "swiglu", "sliding", "swiglu"] },
    ["samba", "selscan"],
  ],
  "Sliding GLA": [
    { ...small, dim: 384, layers: 4, pattern: ["gla", "swiglu", "sliding", "swiglu"] },
    ["samba", "selscan"],
  ],
  "Sliding RetNet": [
    { ...small, layers: 4, pattern: ["retention", "swiglu", "sliding", "swiglu"] },
    ["samba", "selscan"],
  ],
  Llama: [{ ...small, layers: 4, pattern: ["full", "swiglu"], tied: false }, ["transformers", "samba", "selscan"]],
  Mistral: [{ ...small, layers: 4, pattern: ["sliding", "swiglu"] }, ["transformers", "samba", "selscan"]],
  "a pattern of its own": [
    { ...small, layers: 3, pattern: ["swiglu", "full", "mamba"], rope: { rotary: 4, interleaved: true, base: 500.5 } },
    ["selscan"],
  ],
}

for (const [name, [size, namings]] of Object.entries(models)) {
  test(`${name} is the same, bit for bit, after saving and loading as ${namings.join(", ")}`, async (t) => {
    await using model = await randomModel({ ...size, extra: { note: name } })
    const weights = await weightsOf(model)
    for (const naming of namings) {
      for (const dtype of ["f32", "bf16"] as const) {
        const [first, second] = [fresh(), fresh()]
        await model.save(first, { naming, dtype })
        const again = await load(first, { device })
        t.deepEqual(again.network.config, model.network.config)
        t.is(again.matrixDtype, dtype)
        if (dtype === "f32") t.deepEqual(await weightsOf(again), weights, naming)
        await again.save(second, { naming })
        await again.dispose()
        const config = naming === "samba" ? "lit_config.json" : "config.json"
        for (const file of [config, "model.safetensors"]) {
          t.true((await readFile(join(first, file))).equals(await readFile(join(second, file))), `${naming} ${file}`)
        }
      }
    }
  })
}

test("a model goes from naming to naming and comes back the same", async (t) => {
  await using model = await randomModel(models.Llama![0])
  let last: Model = model
  for (const naming of ["transformers", "samba", "selscan", "transformers"] as const) {
    const path = fresh()
    await last.save(path, { naming })
    if (last !== model) await last.dispose()
    last = await load(path, { device })
  }
  t.deepEqual(await weightsOf(last), await weightsOf(model))
  await last.dispose()
})

test("a loaded model is saved as others read it, or else in our form", async (t) => {
  for (const [name, type] of [
    ["Llama", "llama"],
    ["Mistral", "mistral"],
    ["Mamba", undefined],
    ["SAMBA", "selscan"],
  ] as const) {
    const model = await randomModel(models[name]![0])
    const path = fresh()
    await model.save(path)
    await model.dispose()
    t.is(JSON.parse(await readFile(join(path, "config.json"), "utf8")).model_type, type, name)
  }
})

test("what a model generates does not depend on the naming it was saved in", async (t) => {
  await using model = await randomModel(models.SAMBA![0])
  const answers: unknown[] = []
  for (const naming of ["samba", "selscan"] as const) {
    const path = fresh()
    await model.save(path, { naming })
    const loaded = await load(path, { device })
    const session = loaded.session()
    const tokens = []
    for await (const token of session.tokens([3, 1, 4, 1, 5, 9, 2, 6], { temperature: 0, maxTokens: 8 }))
      tokens.push(token)
    answers.push(tokens)
    session[Symbol.dispose]()
    await loaded.dispose()
  }
  t.is((answers[0] as unknown[]).length, 8)
  t.deepEqual(answers[0], answers[1])
})

test("a tensor of many pieces is read and written whole", async (t) => {
  await using model = await randomModel({ dim: 24, layers: 1, vocab: 130_003 }) // 12 MB
  const path = fresh()
  await model.save(path, { naming: "transformers" })
  await using again = await load(path, { device })
  t.deepEqual(await weightsOf(again), await weightsOf(model))
})

test("a model is loaded from shards as from one file", async (t) => {
  await using model = await randomModel(models.Llama![0])
  const [whole, parts] = [fresh(), fresh()]
  await model.save(whole)
  await mkdir(parts)
  await writeFile(join(parts, "config.json"), await readFile(join(whole, "config.json")))
  await using file = await openSafetensors(join(whole, "model.safetensors"))
  const map: Record<string, string> = {}
  for (const shard of [0, 1]) {
    const name = `model-0000${shard + 1}-of-00002.safetensors`
    const mine = [...file.tensors.values()].filter((_, i) => i % 2 === shard)
    const entries = mine.map(({ name, dtype, shape }) => ({ name, dtype, shape, data: () => file.read(name) }))
    await writeSafetensors(join(parts, name), entries)
    for (const tensor of mine) map[tensor.name] = name
  }
  writeFileSync(join(parts, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }))
  await using again = await load(parts, { device })
  t.deepEqual(await weightsOf(again), await weightsOf(model))
})

test("positions without a window are the config's unless the caller says otherwise", async (t) => {
  const size = { ...small, layers: 4, pattern: ["full", "swiglu", "sliding", "swiglu"] as const, contextMax: 100 }
  await using model = await randomModel(size)
  const path = fresh()
  await model.save(path)
  const positions = async (options: object) => {
    const loaded = await load(path, { device, ...options })
    await loaded.dispose()
    const { pattern } = loaded.network.config as ModelConfig
    return pattern.flatMap((block) => (block.kind === "attention" ? [block.contextMax] : []))
  }
  t.deepEqual(await positions({}), [100, 100])
  t.deepEqual(await positions({ contextMax: 7 }), [7, 100])
})

test("tensors of another family beside a config are refused with the names of both", async (t) => {
  const [llama, samba] = [await randomModel(models.Llama![0]), await randomModel(models.SAMBA![0])]
  const [one, other] = [fresh(), fresh()]
  await llama.save(one)
  await samba.save(other, { naming: "samba" })
  for (const model of [llama, samba]) await model.dispose()
  await writeFile(join(one, "model.safetensors"), await readFile(join(other, "model.safetensors")))
  const message =
    /^\S+model\.safetensors: expected the tensors of a Llama model, as config\.json says, got those of SAMBA; /
  t.like(await t.throwsAsync(() => load(one, { device }), { message }), { code: "BAD_CHECKPOINT" })
})

test("a weight that is no number in f16 is refused before the old file is replaced", async (t) => {
  await using model = await randomModel(models.Mamba![0])
  const path = fresh()
  await model.save(path)
  const before = await readFile(join(path, "model.safetensors"))
  const name = "backbone.layers.1.mixer.in_proj.weight"
  await model.store.upload("weight", { name, dtype: "f32", shape: [128, 32] }, Float32Array.of(1e6), 4 * 5)
  const message = new RegExp(`${name} in f16: finite weights are expected, got Infinity at index 5`)
  t.like(await t.throwsAsync(() => model.save(path, { dtype: "f16" }), { message }), { code: "NOT_FINITE" })
  t.true((await readFile(join(path, "model.safetensors"))).equals(before))
})

test("a NaN anywhere in a file is refused with its place", async (t) => {
  await using model = await randomModel(models.SAMBA![0])
  const name = "backbone.layers.2.mixer.qkv.weight"
  // Row 3 of the first key: 32 rows of queries are before it here, 16 in the file.
  await model.store.upload(
    "weight",
    { name, dtype: "f32", shape: [64, 32] },
    Float32Array.of(Number.NaN),
    4 * 32 * (32 + 3),
  )
  const path = fresh()
  await model.save(path, { naming: "samba" })
  const message = /transformer\.h\.1\.attn\.attn\.weight: finite weights are expected, got NaN at index 608; /
  t.like(await t.throwsAsync(() => load(path, { device }), { message }), { code: "NOT_FINITE" })
})
