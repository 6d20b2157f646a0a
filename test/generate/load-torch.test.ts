/** load() of what PyTorch saved: .bin, .pth and shards, and the models that come that way. */
import { execFile } from "node:child_process"
import { copyFileSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs"
import { rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import test from "ava"
import { familyOf, modelConfigFields, tensorsOf } from "../../lib/checkpoint/families.ts"
import type { FileTensor } from "../../lib/checkpoint/family.ts"
import { mambaByte } from "../../lib/checkpoint/mambabyte.ts"
import { load } from "../../lib/generate/load.ts"
import type { Model } from "../../lib/generate/model.ts"
import { type ModelConfig, modelConfig } from "../../lib/models/config.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import * as w from "../checkpoint/torch-writer.ts"
import { device } from "../device.ts"
import { logProbabilities } from "../models/mamba-reference.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-load-torch-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

const golden = (name: string) => fileURLToPath(new URL(`../golden/data/models/${name}`, import.meta.url))

/** A new folder with these files. */
function folderOf(name: string, files: Readonly<Record<string, string | Uint8Array>>): string {
  const path = join(folder, name)
  mkdirSync(path)
  for (const [file, data] of Object.entries(files)) writeFileSync(join(path, file), data)
  return path
}

async function tokensOf(model: Model, prompt = [72, 105]): Promise<readonly { id: number; logprob: number }[]> {
  await using session = model.session()
  const list = []
  for await (const token of session.tokens(prompt, { temperature: 0, maxTokens: 6 })) list.push(token)
  return list
}

async function tokens(path: string, options = {}): Promise<readonly { id: number; logprob: number }[]> {
  await using model = await load(path, { device, ...options })
  return await tokensOf(model)
}

const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength)

/** Fresh weights, of norms other ones than 1 and 0, which would hide that they are not there. */
function weightsOf(config: ModelConfig): Map<string, Float32Array> {
  const weights = initialWeights(new PatternModel(config), 5)
  for (const [name, values] of weights)
    if (/norm/.test(name))
      values.forEach((value, i) => {
        values[i] = value + 0.1 * ((i % 7) - 3)
      })
  return weights
}

/** A state dict of weights in a family's names, and its storages. */
function stateDict(config: ModelConfig, table: readonly FileTensor[]) {
  const weights = weightsOf(config)
  const storages: Record<string, Uint8Array> = {}
  const entries: Record<string, w.Piece> = {}
  for (const { fileName, shape, parts, copyOf } of table) {
    if (copyOf !== undefined) {
      entries[fileName] = entries[copyOf]!
      continue
    }
    const key = String(Object.keys(storages).length)
    storages[key] = w.bytesOf(
      ...parts.map(({ name, row, rows }) => bytes(rowsOf(weights.get(name)!, shape, row, rows))),
    )
    entries[fileName] = w.tensor(w.storage(key, storages[key].length / 4), { shape })
  }
  return { entries, storages }
}

function rowsOf(values: Float32Array, shape: readonly number[], row: number, rows: number): Float32Array {
  const columns = shape.slice(1).reduce((product, size) => product * size, 1)
  return values.slice(row * columns, (row + rows) * columns)
}

test("a model of PyTorch gives the tokens of its safetensors", async (t) => {
  const path = join(folder, "bf16")
  mkdirSync(path)
  for (const file of ["config.json", "pytorch_model.bin"])
    copyFileSync(join(golden("mamba-byte/bf16"), file), join(path, file))
  t.deepEqual(await tokens(path), await tokens(golden("mamba-byte/bf16")))
  await using model = await load(path, { device })
  t.is(model.precision, "bf16")
})

const samba = modelConfig({
  dim: 16,
  layers: 4,
  vocab: 256,
  pattern: ["mamba", "swiglu", "sliding", "swiglu"],
  heads: 2,
  window: 4,
})

test("SAMBA's .pth is read: the model among counters, and one file by whatever name", async (t) => {
  const family = familyOf(samba, "samba")
  const { entries, storages } = stateDict(samba, tensorsOf(family, samba))
  const whole = w.dict({ model: w.dict(entries), iter_num: w.int(7), step_count: w.int(3) })
  const config = JSON.stringify(modelConfigFields(samba, "samba"))
  const file = w.torchFile(whole, storages)
  const path = folderOf("samba", { "lit_config.json": config, "iter-000007-ckpt.pth": file })
  t.is((await tokens(path)).length, 6)
  const two = folderOf("two", { "lit_config.json": config, "a.pth": file, "b.pth": file })
  const error = await t.throwsAsync(load(two, { device }), {
    code: "BAD_CHECKPOINT",
    message: /one \.pth file, got a\.pth and b\.pth; leave/,
  })
  t.true(error!.message.startsWith(two))
  writeFileSync(join(two, "model.safetensors"), "")
  await t.throwsAsync(load(two, { device }), {
    code: "BAD_FILE",
    message: /model\.safetensors: /,
    name: "SelscanError",
  })
})

test("shards of .bin are read, with a tied head in another shard than its embedding", async (t) => {
  const config = modelConfig({ dim: 16, layers: 2, vocab: 256 })
  const { entries, storages } = stateDict(config, tensorsOf(familyOf(config, "original"), config))
  const whole = folderOf("whole", {
    "config.json": JSON.stringify(modelConfigFields(config, "original")),
    "pytorch_model.bin": w.torchFile(w.dict(entries), storages),
  })
  const names = Object.keys(entries)
  const shardOf = (name: string) =>
    `pytorch_model-0000${name.includes("layers.1") || name === "lm_head.weight" ? 2 : 1}-of-00002.bin`
  const files = [...new Set(names.map(shardOf))].map((file) => {
    const own = Object.fromEntries(Object.entries(entries).filter(([name]) => shardOf(name) === file))
    return [file, w.torchFile(w.dict(own), storages)] as const
  })
  const weight_map = Object.fromEntries(names.map((name) => [name, shardOf(name)]))
  const path = folderOf("shards", {
    "config.json": JSON.stringify(modelConfigFields(config, "original")),
    "pytorch_model.bin.index.json": JSON.stringify({ metadata: {}, weight_map }),
    ...Object.fromEntries(files),
  })
  t.deepEqual(await tokens(path), await tokens(whole))
})

const layer = modelConfig({ dim: 16, layers: 2, vocab: 256, norm: "layer", tied: false })

test("MambaByte's own module and the original form are the same model", async (t) => {
  const own = stateDict(layer, tensorsOf(mambaByte, layer))
  const prefixed = Object.fromEntries(Object.entries(own.entries).map(([name, piece]) => [`module.${name}`, piece]))
  const path = folderOf("module", {
    "config.json": JSON.stringify({ d_model: 16, num_layers: 2, vocab_size: 256 }),
    "pytorch_model.bin": w.torchFile(w.dict(prefixed), own.storages),
  })
  const original = stateDict(layer, tensorsOf(familyOf(layer, "original"), layer))
  const other = folderOf("original", {
    "config.json": JSON.stringify(modelConfigFields(layer, "original")),
    "pytorch_model.bin": w.torchFile(w.dict(original.entries), original.storages),
  })
  t.deepEqual(await tokens(path), await tokens(other))
  await using model = await load(path, { device })
  await model.save(join(folder, "saved"))
  t.deepEqual(await tokens(join(folder, "saved")), await tokens(path))
})

for (const [name, size] of [
  ["with LayerNorm and a head of its own", { norm: "layer", tied: false }],
  ["with norms in its mixers", { tied: false, mixerNormEps: 1e-6 }],
] as const) {
  test(`a Mamba ${name} is what its equations say, at once and byte by byte`, async (t) => {
    const config = modelConfig({ dim: 16, layers: 3, vocab: 256, ...size })
    const { entries, storages } = stateDict(config, tensorsOf(familyOf(config), config))
    const path = folderOf(name.replaceAll(" ", "-"), {
      "config.json": JSON.stringify(modelConfigFields(config, familyOf(config).naming)),
      "pytorch_model.bin": w.torchFile(w.dict(entries), storages),
    })
    for (const precision of ["f32", "bf16"] as const) {
      await using model = await load(path, { device, precision })
      const prompt = Array.from({ length: 37 }, (_, i) => (i * 29) % 256)
      const whole = await tokensOf(model, prompt)
      await using session = model.session()
      for (const id of prompt.slice(0, -1)) await session.append([id])
      const stepped = []
      for await (const token of session.tokens(prompt.slice(-1), { temperature: 0, maxTokens: 6 })) stepped.push(token)
      t.deepEqual(stepped, whole)
      if (precision !== "f32") continue
      const ids = [...prompt, ...whole.map(({ id }) => id)]
      // f32 resolves these logarithms, of some -5, to 5e-7.
      const exact = logProbabilities(weightsOf(config), config, ids).slice(prompt.length - 1, -1)
      for (const [i, { id, logprob }] of whole.entries())
        t.true(Math.abs(exact[i]![id]! - logprob) < 2e-6, `token ${i}`)
    }
  })
}

test("a head that is said to be tied and is another is refused", async (t) => {
  const config = modelConfig({ dim: 16, layers: 1, vocab: 256, tied: false })
  const { entries, storages } = stateDict(config, tensorsOf(familyOf(config, "original"), config))
  const fields = { ...modelConfigFields(config, "original"), tie_embeddings: true }
  const path = folderOf("untied", {
    "config.json": JSON.stringify(fields),
    "pytorch_model.bin": w.torchFile(w.dict(entries), storages),
  })
  const message = /expected lm_head\.weight to equal backbone\.embedding\.weight, got other data; say in the config/
  await t.throwsAsync(load(path, { device }), { code: "BAD_CHECKPOINT", message })
})

const limit = 64 << 20
/** The peak of a process's memory is read from /proc; on a GPU weights are elsewhere. */
const onLinux = process.platform === "linux" && device === "cpu" ? test : test.skip

onLinux(
  "loading takes the size of the weights and 64 MB at most, of a file whose largest tensor is transposed too",
  async (t) => {
    const config = modelConfig({ dim: 256, layers: 1, vocab: 1 << 17, tied: true })
    const { entries, storages } = stateDict(config, tensorsOf(familyOf(config, "original"), config))
    const name = "backbone.embedding.weight"
    const key = Object.keys(entries).indexOf(name)
    const view = { shape: [config.vocab, config.dim], strides: [1, config.vocab] }
    const transposed = { ...entries, [name]: w.tensor(w.storage(String(key), config.vocab * config.dim), view) }
    for (const [kind, contents] of Object.entries({
      plain: entries,
      transposed: { ...transposed, "lm_head.weight": transposed[name]! },
    })) {
      const path = folderOf(kind, {
        "config.json": JSON.stringify(modelConfigFields(config, "original")),
        "pytorch_model.bin": w.torchFile(w.dict(contents), storages),
      })
      const { size } = await stat(join(path, "pytorch_model.bin"))
      // Not resourceUsage().maxRSS, which a child has from its parent.
      const script = `
      import { readFileSync } from "node:fs"
      import { load } from ${JSON.stringify(fileURLToPath(new URL("../../lib/generate/load.ts", import.meta.url)))}
      await (await load("demo")).dispose()
      const before = process.memoryUsage.rss()
      await load(${JSON.stringify(path)}, { device: "cpu" })
      const peak = /VmHWM:\\s*(\\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))[1]
      console.log(1024 * peak - before)`
      const { stdout } = await promisify(execFile)(process.execPath, [
        "--import=tsx",
        "--input-type=module",
        "-e",
        script,
      ])
      const taken = Number(stdout)
      t.log(`${kind}: ${size >> 20} MB of file, ${taken >> 20} MB of memory`)
      t.true(taken <= size + limit, `${kind}: ${taken} bytes of memory for a file of ${size}`)
    }
  },
)
