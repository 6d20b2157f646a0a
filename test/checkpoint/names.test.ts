import { join } from "node:path"
import test from "ava"
import { familyOf, familyOfTensors, tensorsOf } from "../../lib/checkpoint/families.ts"
import type { Family, FileTensor, Naming } from "../../lib/checkpoint/family.ts"
import { llama } from "../../lib/checkpoint/llama.ts"
import { mambaOriginal, mambaTransformers } from "../../lib/checkpoint/mamba.ts"
import { checkCopies, checkNames, checkShapes, checkTensors, match } from "../../lib/checkpoint/names.ts"
import { openSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { samba } from "../../lib/checkpoint/samba.ts"
import { selscan } from "../../lib/checkpoint/selscan.ts"
import type { SelscanError } from "../../lib/errors.ts"
import { type ModelConfig, modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()
const config = modelConfig({ dim: 32, layers: 3, vocab: 256 })
const mambas = { original: mambaOriginal, transformers: mambaTransformers }
const namesOf = (family: Family, of: ModelConfig = config) =>
  tensorsOf(family, of)
    .filter(({ copyOf }) => copyOf === undefined)
    .map(({ fileName }) => fileName)
const elements = (table: readonly FileTensor[]) =>
  table
    .filter(({ copyOf }) => copyOf === undefined)
    .reduce((sum, { shape }) => sum + shape.reduce((product, dim) => product * dim, 1), 0)

test("the names of one Mamba layer are those of the public checkpoints", (t) => {
  const one = { ...config, depth: 1 }
  const layer = namesOf(mambaTransformers, one).slice(1, -1)
  t.deepEqual(
    [...layer].sort(),
    ["A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "in_proj.weight"]
      .concat("out_proj.weight", "x_proj.weight")
      .map((name) => `backbone.layers.0.mixer.${name}`)
      .concat("backbone.layers.0.norm.weight"),
  )
  t.deepEqual(namesOf(mambaTransformers).slice(0, 1), ["backbone.embeddings.weight"])
  t.deepEqual(namesOf(mambaTransformers).slice(-1), ["backbone.norm_f.weight"])
  t.deepEqual(
    namesOf(mambaOriginal).map((name) => name.replace("embedding.", "embeddings.")),
    namesOf(mambaTransformers),
  )
})

test("the names of each kind of SAMBA's layers are those of its modules", (t) => {
  const blocks = { dim: 768, vocab: 64, heads: 4, mlp: 40 }
  const layer = (i: number, size: Parameters<typeof modelConfig>[0]) =>
    namesOf(samba, modelConfig(size))
      .filter((name) => name.startsWith(`transformer.h.${i}.`))
      .map((name) => name.replace(`transformer.h.${i}.`, "").replace(".weight", ""))
  const four = { ...blocks, layers: 4, pattern: sambaPattern }
  const mlp = ["norm_2", "mlp.swiglu.w1", "mlp.swiglu.w2", "mlp.swiglu.w3"]
  const scan = ["A_log", "D", "conv1d", "conv1d.bias", "x_proj", "dt_proj", "dt_proj.bias", "in_proj", "out_proj"]
  const below = (path: string, names: string[]) => names.map((name) => `${path}.${name}`)
  t.deepEqual(layer(0, four), ["norm_1", ...below("attn", scan), ...mlp])
  t.deepEqual(layer(1, four), ["norm_1", "attn.attn", "attn.proj", ...mlp])
  const short = { ...four, shortConv: 4 }
  t.deepEqual(layer(1, short).slice(1, 6), below("attn", ["attn", "proj", "q_conv1d", "k_conv1d", "v_conv1d"]))
  const triple = { ...blocks, layers: 3, pattern: ["mamba", "sliding", "swiglu"] as const }
  t.deepEqual(layer(0, triple), ["norm_m", ...below("mb", scan), "norm_attn", "attn.attn", "attn.proj", ...mlp])
  const mlp2 = { ...four, pattern: [{ block: "swiglu", mlp: 1536 }, "swiglu", "sliding", "swiglu"] as const }
  t.deepEqual(layer(0, mlp2), ["norm_1", ...below("attn.swiglu", ["w1", "w2", "w3"]), ...mlp])
  const gla = { ...four, pattern: ["gla", "swiglu", "sliding", "swiglu"] as const }
  const projections = ["q_proj", "k_proj", "v_proj", "g_proj", "gk_proj.0", "gk_proj.1", "gk_proj.1.bias", "o_proj"]
  t.deepEqual(layer(0, gla).sort(), [...below("attn", ["g_norm_swish_gate", ...projections]), "norm_1", ...mlp].sort())
  t.deepEqual(layer(0, { ...blocks, layers: 1 }), ["norm", ...below("mixer", scan)])
})

test("the names of a Llama layer are those of transformers, three for our q, k and v", (t) => {
  const size = {
    dim: 32,
    layers: 2,
    vocab: 64,
    pattern: ["full", "swiglu"] as const,
    heads: 4,
    kvHeads: 2,
    tied: false,
  }
  const table = tensorsOf(llama, modelConfig(size))
  const expected = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    .concat("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    .map((name) => `model.layers.0.${name}.weight`)
  t.deepEqual(
    table.map(({ fileName }) => fileName),
    ["model.embed_tokens.weight", ...expected, "model.norm.weight", "lm_head.weight"],
  )
  const rows = table.slice(2, 5).map(({ shape, parts }) => [...shape, parts[0]!.row])
  t.deepEqual(rows, [
    [32, 32, 0],
    [16, 32, 32],
    [16, 32, 48],
  ])
})

test("a model with biases, or without the convolution's, has the tensors it says", (t) => {
  const names = namesOf(mambaOriginal, modelConfig({ dim: 32, layers: 1, vocab: 256, projBias: true, convBias: false }))
  const biases = names.filter((name) => name.endsWith("bias")).map((name) => name.split(".").at(-2))
  t.deepEqual(biases.sort(), ["dt_proj", "in_proj", "out_proj"])
})

for (const [naming, family] of Object.entries(mambas)) {
  test(`the head of a tied model in ${naming} names may be there, that of an untied one must`, (t) => {
    const names = namesOf(family)
    const withHead = match([...names, "lm_head.weight"], tensorsOf(family, config))
    t.deepEqual(
      withHead.copies.map(({ fileName, copyOf }) => [fileName, copyOf]),
      [["lm_head.weight", names[0]]],
    )
    t.deepEqual([withHead.missing, withHead.unexpected, withHead.tensors.length], [[], [], names.length])
    const untied = tensorsOf(family, { ...config, tied: false })
    t.deepEqual(match(names, untied).missing, ["lm_head.weight"])
    t.is(match([...names, "lm_head.weight"], untied).tensors.length, names.length + 1)
  })
}

test("a file's names decide between the two namings of Mamba", (t) => {
  const read = { family: mambaOriginal, config }
  const of = (names: readonly string[]) => familyOfTensors(read, new Set(names), "m")
  t.is(of(namesOf(mambaOriginal)), mambaOriginal)
  t.is(of(namesOf(mambaTransformers)), mambaTransformers)
  const both = [...namesOf(mambaOriginal), ...namesOf(mambaTransformers)]
  t.deepEqual(match(both, tensorsOf(of(both), config)).unexpected, ["backbone.embeddings.weight"])
  const none = match([], tensorsOf(of([]), config))
  t.throws(() => checkNames(none, "m"), { code: "BAD_CHECKPOINT", message: /backbone\.embedding\.weight.* missing/ })
})

test("a checkpoint of another family is refused with the names of both", (t) => {
  const attention = modelConfig({ dim: 32, layers: 4, vocab: 64, pattern: sambaPattern, heads: 4 })
  const says = (family: Family, config: ModelConfig, names: readonly string[], words: string) => {
    const check = () => familyOfTensors({ family, config }, new Set(names), "model.safetensors")
    t.is(t.throws(check, { code: "BAD_CHECKPOINT" })!.message, `model.safetensors: expected the tensors of a ${words}`)
  }
  const pair = "pair it with its own"
  says(
    llama,
    config,
    namesOf(mambaOriginal),
    `Llama model, as config.json says, got those of Mamba or selscan; ${pair} config.json`,
  )
  says(
    mambaOriginal,
    config,
    namesOf(samba, attention),
    `Mamba model, as config.json says, got those of SAMBA; ${pair} config.json`,
  )
  says(
    samba,
    attention,
    ["model.embed_tokens.weight"],
    `SAMBA model, as lit_config.json says, got those of Llama or Mistral; ${pair} lit_config.json`,
  )
  says(
    selscan,
    attention,
    namesOf(samba, attention),
    `selscan model, as config.json says, got those of SAMBA; ${pair} config.json`,
  )
})

test("buffers that a family ignores are not unexpected", (t) => {
  const buffers = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
  const others = ["model.rotary_emb.inv_freq.weight", "inv_freq"]
  t.deepEqual(match([...buffers, ...others], [], llama.ignored).unexpected, others)
  t.deepEqual(match(buffers, [], samba.ignored).unexpected, buffers)
})

test("missing and unexpected tensors are told in one error, the first eight of each", (t) => {
  const names = namesOf(mambaOriginal).filter((name) => !name.includes("layers.1."))
  const extra = Array.from({ length: 9 }, (_, i) => `extra.${i}`)
  const report = match([...names, ...extra], tensorsOf(mambaOriginal, config))
  t.is(report.missing.length, 10)
  const error = t.throws<SelscanError>(() => checkNames(report, "model"), { code: "BAD_CHECKPOINT" })
  t.regex(
    error.message,
    /^model: expected .*, got backbone\.layers\.1\.norm\.weight, .* and 2 more missing and extra\.0, .* and 1 more unexpected; /,
  )
  t.is(error.message.match(/backbone/g)?.length, 8)
  t.deepEqual(error.details.unexpected, extra)
})

test("a tensor of another shape is named with both shapes", (t) => {
  const table = tensorsOf(mambaTransformers, config)
  const tensors = new Map(table.map((tensor) => [tensor.fileName, tensor]))
  t.notThrows(() => checkShapes(tensors, table, "model"))
  const message =
    "model: expected backbone.layers.0.mixer.A_log to be [64,8], got [64,16]; pair it with its own config file"
  const narrow = tensorsOf(mambaTransformers, modelConfig({ dim: 32, layers: 3, vocab: 256, state: 8, rank: 18 })) // rank + 2·state stays the same
  t.throws(() => checkShapes(tensors, narrow, "model"), { code: "BAD_CHECKPOINT", message })
})

test("a tied head must hold the embedding's data", async (t) => {
  const tiny = modelConfig({ dim: 2, layers: 1, vocab: 3 })
  const data = Uint8Array.from({ length: 24 }, (_, i) => i)
  const check = async (head: Uint8Array) => {
    const path = join(folder, "head.safetensors")
    const entry = (name: string, bytes: Uint8Array) => {
      return { name, dtype: "F32" as const, shape: [bytes.length / 4], data: bytes }
    }
    await writeSafetensors(path, [entry("backbone.embedding.weight", data), entry("lm_head.weight", head)])
    await using file = await openSafetensors(path)
    await checkCopies(file, match(file.tensors.keys(), tensorsOf(mambaOriginal, tiny)))
  }
  await t.notThrowsAsync(check(data))
  for (const head of [data.with(23, 0), data.subarray(0, 12)]) {
    const message = /lm_head.weight to equal backbone.embedding.weight/
    await t.throwsAsync(check(head), { code: "BAD_CHECKPOINT", message })
  }
})

test("a whole file is held to its table", async (t) => {
  const tiny = modelConfig({ dim: 2, layers: 1, vocab: 3 })
  const table = tensorsOf(mambaOriginal, tiny)
  const path = join(folder, "whole.safetensors")
  const entries = table
    .filter(({ copyOf }) => copyOf === undefined)
    .map(({ fileName, shape }) => {
      const size = 4 * shape.reduce((product, dim) => product * dim, 1)
      return { name: fileName, dtype: "F32" as const, shape, data: new Uint8Array(size) }
    })
  await writeSafetensors(path, entries)
  await using file = await openSafetensors(path)
  t.is((await checkTensors(file, table, {})).length, entries.length)
  const wider = tensorsOf(mambaOriginal, modelConfig({ dim: 3, layers: 1, vocab: 3 }))
  await t.throwsAsync(checkTensors(file, wider, {}), { code: "BAD_CHECKPOINT", message: /to be \[3,3\], got \[3,2\]/ })
})

test("all namings of a model have as many elements", (t) => {
  const counts = (of: ModelConfig, namings: readonly Naming[]) =>
    namings.map((naming) => elements(tensorsOf(familyOf(of, naming), of)))
  t.is(new Set(counts(config, ["original", "transformers", "samba", "selscan"])).size, 1)
  const samba = modelConfig({ dim: 64, layers: 4, vocab: 64, pattern: sambaPattern, kvHeads: 1, tied: false })
  t.is(new Set(counts(samba, ["samba", "selscan"])).size, 1)
})

test("names that a terminal would obey are quoted on one line", (t) => {
  const unexpected = ["\u001b[2J\nextra", "\u202eartxe", "", "x".repeat(1000)]
  const report = { tensors: [], missing: [], unexpected, copies: [] }
  const { message } = t.throws<SelscanError>(() => checkNames(report, "model"), { code: "BAD_CHECKPOINT" })
  t.notRegex(message, /[\p{Cc}\p{Cf}]/u)
  t.true(message.length < 400)
})
